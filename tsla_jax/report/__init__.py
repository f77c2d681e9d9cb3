"""From result files to what people read."""

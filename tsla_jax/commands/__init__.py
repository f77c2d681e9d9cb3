"""The commands: flags, and one call each. See `--help` of each of them."""

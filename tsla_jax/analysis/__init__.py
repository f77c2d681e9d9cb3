"""What smoothing does, as pure functions on arrays."""

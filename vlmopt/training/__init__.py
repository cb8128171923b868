"""Training of the bundled test checkpoints; nothing here is needed to use the library."""

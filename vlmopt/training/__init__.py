"""Training of the bundled test checkpoint; nothing here is needed to use the library."""

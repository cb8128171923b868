"""vlmopt inside other tools; nothing here is imported by the rest of the package."""

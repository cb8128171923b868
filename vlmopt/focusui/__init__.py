"""Training of FocusUI's scorer and marker, and of the model that reads them, on screens (arXiv 2601.03928)."""

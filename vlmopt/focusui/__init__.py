"""Train FocusUI's scorer and marker, and the model that reads them, on screens (arXiv 2601.03928)."""

"""What the runtime can do to a model: a file or folder per feature, with its state and its part in every pass."""

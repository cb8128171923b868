"""What the runtime can do to a model: one file or folder per feature, with the state it keeps and its part in every pass."""

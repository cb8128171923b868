"""Look twice: find where a question makes a model look, cut the image down to that, and ask again."""

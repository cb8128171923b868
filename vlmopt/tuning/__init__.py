"""The fastest policy inside a quality budget: race on one part of the data, confirm on another, say what is sure."""

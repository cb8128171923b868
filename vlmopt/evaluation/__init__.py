"""Batch evaluation: from a data set and policies to records, figures and a report; `evaluate.evaluate` runs it."""

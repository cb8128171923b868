"""Sparse prefill: patterns that choose keys, and the attention that reads only those. Knows torch, no models."""

"""Offline search: which sparse pattern suits which head of a model, by output error at equal cost."""

from __future__ import annotations

from .candidates import candidates
from .capture import watch
from .search import PatternSearch

__all__ = ["PatternSearch", "candidates", "watch"]

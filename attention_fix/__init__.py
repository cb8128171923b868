"""How attention, heads or logits are corrected: pure tensor algorithms on torch and the standard library."""

from .base import Correction, register, registry
from .rows import attention_rows

__all__ = ["Correction", "attention_rows", "register", "registry"]

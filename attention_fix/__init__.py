"""How attention, heads or logits are corrected: pure tensor algorithms that know torch only."""

from .base import (
    Correction,
    HeadCorrection,
    Need,
    Residual,
    RowCorrection,
    RowView,
    TextOnly,
    Tower,
    register,
    registry,
)
from .rows import attention_rows

__all__ = [
    "Correction",
    "HeadCorrection",
    "Need",
    "Residual",
    "RowCorrection",
    "RowView",
    "TextOnly",
    "Tower",
    "attention_rows",
    "register",
    "registry",
]

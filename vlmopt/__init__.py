"""vlmopt: faster, smaller, less hallucinating vision-language models, without forking them."""

from __future__ import annotations

from .checkpoints import load_checkpoint
from .optimize import optimize, optimized, report, restore
from .policy import Policy
from .presets import presets
from .report import Report
from .version import __version__

__all__ = [
    "Policy",
    "Report",
    "__version__",
    "load_checkpoint",
    "optimize",
    "optimized",
    "presets",
    "report",
    "restore",
]

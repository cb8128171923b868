"""vlmopt: faster, smaller, less hallucinating vision-language models, without forking them."""

from __future__ import annotations

from .checkpoints import load_checkpoint
from .diagnose import SinkReport, diagnose_sinks
from .optimize import optimize, optimized, report, restore
from .policy import Policy
from .presets import presets
from .report import Report
from .version import __version__

__all__ = [
    "Policy",
    "Report",
    "SinkReport",
    "__version__",
    "diagnose_sinks",
    "load_checkpoint",
    "optimize",
    "optimized",
    "presets",
    "report",
    "restore",
]

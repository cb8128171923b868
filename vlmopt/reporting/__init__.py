"""The report of a call: what ran where, what it cost, what was skipped and why; made from the ledger when asked for."""

from .accounting import VisualMap
from .report import Report
from .stages import Stage

__all__ = ["Report", "Stage", "VisualMap"]

"""Calibration: one pass over images, one profile file with what was measured on this model."""

from __future__ import annotations

from ..choices import PARTS
from .calibration import Calibration
from .iat import IATCollector
from .profile import Profile
from .trends import MISSING, Collector, default_hosts, key

__all__ = ["MISSING", "PARTS", "Calibration", "Collector", "IATCollector", "Profile", "default_hosts", "key"]

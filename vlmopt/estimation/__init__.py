"""What a policy would save, predicted from a config alone: tokens, FLOPs, bytes, and the times of a roofline."""

from __future__ import annotations

from .devices import Device, devices
from .predict import estimate
from .result import Estimate, Prediction

__all__ = ["Device", "Estimate", "Prediction", "devices", "estimate"]

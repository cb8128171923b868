"""What a policy would save, predicted from a config alone: tokens, FLOPs, bytes, and the times of a roofline."""

from __future__ import annotations

from .capacity import Capacity, Load
from .devices import Device, devices
from .predict import described, estimate
from .result import Estimate, Prediction
from .serving import capacities, mix_of

__all__ = [
    "Capacity",
    "Device",
    "Estimate",
    "Load",
    "Prediction",
    "capacities",
    "described",
    "devices",
    "estimate",
    "mix_of",
]

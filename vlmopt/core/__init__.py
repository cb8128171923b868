"""What every kind of method is made of: checked settings and a registry of names. Standard library only."""

from .data import check_depth, parse, shown
from .profile import MeasuredProfile
from .registry import Registry
from .settings import Configured, setting, validate
from .signals import Signal
from .suggest import hinting, near, unknown, unknown_setting

__all__ = [
    "Configured",
    "MeasuredProfile",
    "Registry",
    "Signal",
    "check_depth",
    "hinting",
    "near",
    "parse",
    "setting",
    "shown",
    "unknown",
    "unknown_setting",
    "validate",
]

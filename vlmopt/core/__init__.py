"""What every kind of method is made of: checked settings and a registry of names. Standard library only."""

from .data import check_depth, parse, shown
from .profile import MeasuredProfile
from .registry import Registry
from .settings import Configured, setting, validate
from .signals import Signal
from .suggest import near

__all__ = [
    "Configured",
    "MeasuredProfile",
    "Registry",
    "Signal",
    "check_depth",
    "near",
    "parse",
    "setting",
    "shown",
    "validate",
]

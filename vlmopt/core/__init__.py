"""What every kind of method is made of: checked settings and a registry of names. Standard library only."""

from .data import check_depth, parse, shown
from .registry import Registry
from .settings import setting, validate

__all__ = ["Registry", "check_depth", "parse", "setting", "shown", "validate"]

"""What every kind of method is made of: checked settings and a registry of names. Standard library only."""

from .registry import Registry
from .settings import setting, validate

__all__ = ["Registry", "setting", "validate"]

"""A policy: what is done to a model, in which order, with which settings; its files and the ready-made ones."""

from .policy import Policy

__all__ = ["Policy"]

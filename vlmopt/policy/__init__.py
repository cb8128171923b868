"""Policies: what is done to a model, in which order, with which settings; their files and the ready-made ones."""

from .policy import Policy, PolicyLike

__all__ = ["Policy", "PolicyLike"]

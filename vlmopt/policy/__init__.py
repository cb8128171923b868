"""A policy: what is done to a model, in which order, with which settings; its files and the ready-made ones."""

from .policy import Policy, PolicyLike

__all__ = ["Policy", "PolicyLike"]

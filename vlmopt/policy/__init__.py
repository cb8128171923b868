"""Policies: what is done to a model, in which order, with which settings; their files and the ready-made ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .policy import Policy, PolicyLike

__all__ = ["Policy", "PolicyLike"]


def __getattr__(name: str) -> Any:  # `inline` serves the command line, which knows names without torch
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import policy

    return getattr(policy, name)

"""What a tuned policy says of itself: on which model and data it was confirmed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vlmopt.core import shown


def note(given: Any) -> Mapping[str, Any] | None:
    """Return the note of `vlmopt tune`, or None; raise `TypeError` for anything but a dict."""
    if given is None or isinstance(given, Mapping):
        return given
    raise TypeError(f"tuned must be the note that `vlmopt tune` writes, got {shown(given)}")


def misfit(tuned: Mapping[str, Any] | None, model: Any) -> str | None:
    """Return how a model differs from the one that a policy was tuned on; None where it does not."""
    facts = {
        "model_type": str(model.config.model_type),
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
    }
    other = [f"{name} {tuned[name]}, not {now}" for name, now in facts.items() if tuned and tuned.get(name, now) != now]
    if not other:
        return None
    return f"this policy was tuned on {' and '.join(other)}: what was confirmed there need not hold; run vlmopt tune"

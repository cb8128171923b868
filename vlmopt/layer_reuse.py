"""How wrong layers become when they read only the keys that an earlier layer chose, as measured on one model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from vlmopt.core import MeasuredProfile, setting, shown

INFINITY = float("inf")  # error of a pair that was not measured


@dataclass(frozen=True, kw_only=True)
class LayerReuse(MeasuredProfile):
    """Errors of all pairs of layers, and from them the layers that should read all keys.

    Args:
        model: facts about the model, as those of head patterns.
        keep_ratio: fraction of the keys that was read.
        errors: per layer, per earlier layer, the mean ||O - O_all||_1 / ||O_all||_1 with that one's choice; None for a
            pair that was not measured, nothing for a layer that was not, which then reads all keys.
        samples: prompts that were averaged.

    Raises:
        TypeError, ValueError: errors that do not fit the model's layers, or below 0.
    """

    label: ClassVar[str] = "layer reuse"
    facts: ClassVar[tuple[str, ...]] = ("layers",)

    keep_ratio: float = setting(0.0625, "Fraction of the keys that was read.", "float", above=0, max=1)
    errors: tuple[tuple[float | None, ...], ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not listed(self.errors) or not all(map(listed, self.errors)):
            raise TypeError(f"layer reuse: errors must be a list of lists, got {shown(self.errors)}")
        if len(self.errors) != self.model["layers"]:
            raise ValueError(f"layer reuse: errors of {len(self.errors)} layers for a model of {self.model['layers']}")
        for layer, own in enumerate(self.errors):
            if len(own) not in (0, layer) or not all(map(is_error, own)):
                raise ValueError(
                    f"layer reuse: layer {layer} needs an error >= 0 or null for each of the {layer} before it, or "
                    f"none at all, got {shown(list(own))}"
                )
        object.__setattr__(self, "errors", tuple(map(tuple, self.errors)))

    def schedule(self, max_error: float) -> frozenset[int]:
        """Return the fewest layers that read all keys with a mean error of at most `max_error`; then the least error.

        Every other layer reuses the choice of the last one of these before it. Exact, by dynamic programming:
        `best[m][l]` is the least error of layers 0..l where l is the last of m + 1 that read all keys.
        """
        depth = len(self.errors)
        reused = [self.reused(first) for first in range(depth)]
        best, before = [[0.0] + [INFINITY] * (depth - 1)], [[-1] * depth]
        while True:
            last = best[-1]
            total, end = min((last[full] + reused[full][depth], full) for full in range(depth))
            if total / depth <= max_error or len(best) == depth:
                break
            sums, come = [INFINITY] * depth, [-1] * depth
            for layer in range(len(best), depth):
                sums[layer], come[layer] = min((last[full] + reused[full][layer], full) for full in range(layer))
            best.append(sums)
            before.append(come)
        chosen = [end]
        for come in reversed(before[1:]):
            chosen.append(come[chosen[-1]])
        return frozenset(chosen)

    def reused(self, full: int) -> list[float]:
        """Return, for every end, the summed errors of the layers between `full` and it that reuse its choice."""
        sums = [0.0] * (full + 2)
        for layer in range(full + 1, len(self.errors)):
            error = self.errors[layer][full] if self.errors[layer] else None
            sums.append(sums[-1] + (INFINITY if error is None else error))
        return sums

    def check(self, model: Mapping[str, Any]) -> None:
        """Raise `ValueError` if the model of its use is another one, naming everything that differs."""
        self.refuse_others(model=model, way_out="Search anew: vlmopt search-patterns")


def listed(value: Any) -> bool:
    """Return whether a value is a list, as JSON or Python have it."""
    return isinstance(value, Sequence) and not isinstance(value, str)


def is_error(value: Any) -> bool:
    """Return whether a value is None or a number from 0 on."""
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < INFINITY)

"""What was measured on one model: the dimensions in which its sinks stand out, and the heads that look at images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from vlmopt.core import MeasuredProfile, setting

CRITERIA = ("visual_mass", "nonsink_mass", "divergence")


@dataclass(frozen=True, kw_only=True)
class ModelProfile(MeasuredProfile):
    """Base of measured profiles that also keep the statistics behind the numbers.

    Raises:
        TypeError, ValueError: as the base; `stats` that is not a dict.
    """

    stats: Mapping[str, Any] = field(default_factory=dict, hash=False)  # what else was found, JSON-ready

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.stats, Mapping):
            raise TypeError(f"{self.label}: stats must be a dict, got {self.stats!r}")
        object.__setattr__(self, "stats", dict(self.stats))

    def check(self, model: Mapping[str, Any]) -> None:
        """Compare with the model of its use; `name_or_path` may differ, since copies have others.

        Raises:
            ValueError: naming everything that differs.
        """
        self.refuse_others(model=model, way_out="Measure anew")


@dataclass(frozen=True, kw_only=True)
class SinkProfile(ModelProfile):
    """Hidden dimensions in which the sinks of a model stand out, and the value from which on a token is a sink.

    Without `dims`, `band` and `first_layer` it says that the model was measured and has no sinks among its visual
    tokens; "reason" in `stats` says why.

    Raises:
        TypeError, ValueError: as the base; a dimension, threshold or layer that the model cannot have, layers without
            dimensions or dimensions without layers.
    """

    label: ClassVar[str] = "sink profile"
    facts: ClassVar[tuple[str, ...]] = ("hidden_size", "layers")

    dims: tuple[int, ...] = setting(MISSING, "Sink dimensions of the residual stream.", "ints", min=0)
    tau: float = setting(MISSING, "A token is a sink from this |x_c| / rms(x) on.", "float", above=0)
    band: tuple[int, ...] = setting((), "First layer with massive activations, first without again.", "ints", min=0)
    first_layer: int | None = setting(None, "First layer whose image tokens hold sinks.", "int", min=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.dims and (self.band or self.first_layer is not None):
            raise ValueError(f"{self.label}: without dims there is no band or first_layer, got {self.band!r}")
        check_dims(self.dims, self.tau, self.model["hidden_size"], self.label, none=True)
        if not self.dims:
            return
        depth = self.model["layers"]
        if len(self.band) != 2 or not self.band[0] < self.band[1] <= depth:
            raise ValueError(f"{self.label}: band={self.band!r} must be two layers, rising, within 0..{depth}")
        if self.first_layer is None or self.first_layer >= depth:
            raise ValueError(f"{self.label}: first_layer={self.first_layer} must be in 0..{depth - 1}")

    @property
    def nothing(self) -> str | None:
        """Why there are no sinks; None if there are."""
        return None if self.dims else str(self.stats.get("reason", "none were found"))


@dataclass(frozen=True, kw_only=True)
class HeadProfile(ModelProfile):
    """How much each head looks at images: means over text rows, by `[layer][head]`.

    Raises:
        TypeError, ValueError: as the base; tables that do not fit the model, or hold other numbers than they may.
    """

    label: ClassVar[str] = "head profile"
    facts: ClassVar[tuple[str, ...]] = ("layers", "num_heads")

    visual_mass: tuple[tuple[float, ...], ...]  # attention mass on visual keys, 0..1
    nonsink_mass: tuple[tuple[float, ...], ...]  # the same without visual sinks, 0..1
    divergence: tuple[tuple[float, ...], ...]  # distance of the head's output from that without images, >= 0

    def __post_init__(self) -> None:
        super().__post_init__()
        shape = self.model["layers"], self.model["num_heads"]
        for name in CRITERIA:
            high = None if name == "divergence" else 1.0
            object.__setattr__(self, name, table(getattr(self, name), shape, high, f"{self.label}: {name}"))

    def gain_map(self, criterion: str = "visual_mass") -> Tensor:
        """Return fp32 [layers, heads] in 0..1: the share of a gain that each head gets.

        Linear from 0 at the median of all heads of the model to 1 at their 90th percentile.

        Args:
            criterion: "visual_mass", "nonsink_mass" or "divergence".

        Raises:
            ValueError: another criterion.
        """
        if criterion not in CRITERIA:
            raise ValueError(f"criterion={criterion!r} must be one of {', '.join(CRITERIA)}")
        scores = torch.tensor(getattr(self, criterion), dtype=torch.float64)
        low, high = scores.quantile(0.5), scores.quantile(0.9)
        if high == low:  # most heads are alike: those above stand out whatever the distance
            return (scores > low).float()
        return ((scores - low) / (high - low)).clamp(0, 1).float()


def check_dims(dims: Sequence[int], tau: float | None, hidden_size: int, label: str, *, none: bool = False) -> None:
    """Raise `ValueError` for dimensions that do not exist, a threshold that no token can reach, or no dimension."""
    if not (dims or none) or len(set(dims)) != len(dims) or max(dims, default=0) >= hidden_size:
        raise ValueError(
            f"{label}: dims={tuple(dims)!r} must be distinct numbers in 0..{hidden_size - 1}, one at least"
        )
    if tau is not None and not tau < hidden_size**0.5:
        raise ValueError(
            f"{label}: tau={tau} is never reached, |x_c| / rms(x) is at most sqrt({hidden_size}) = "
            f"{hidden_size**0.5:.1f}; take about {0.3125 * hidden_size**0.5:.1f}"
        )


def table(rows: Any, shape: tuple[int, int], high: float | None, label: str) -> tuple[tuple[float, ...], ...]:
    """Return rows of finite numbers from 0 to `high`, as tuples of plain floats."""
    try:
        numbers = tuple(tuple(float(value) for value in row) for row in rows)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{label} must be numbers by [layer][head], got {rows!r}") from error
    if len(numbers) != shape[0] or any(len(row) != shape[1] for row in numbers):
        lengths = sorted({len(row) for row in numbers})
        raise ValueError(f"{label} must be {shape[0]} layers of {shape[1]} heads, got {len(numbers)} of {lengths}")
    top = float("inf") if high is None else high + 1e-6  # a mean of fp32 sums may round beyond 1
    wrong = [value for row in numbers for value in row if not (0 <= value <= top and value < float("inf"))]
    if wrong:
        raise ValueError(f"{label} must be >= 0{'' if high is None else f' and <= {high}'}, got {wrong[0]!r}")
    return numbers

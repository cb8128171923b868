"""PyramidDrop: cut several times on the way up, each time by what the last prompt token attends to next."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import pairwise

from torch import Tensor

from vlmopt.core.settings import setting, validate

from .base import ScoreSelector, Selector, register
from .released import Renumbered, rounded_down
from .signals import LookAheadRows, Signal
from .tokens import VisualTokens

TOUCHED = 0.01  # fraction of a token's area from which padding touches it


@dataclass(frozen=True, kw_only=True)
class Progressive(ScoreSelector):
    """Base of methods that cut before several layers; with one layer it is its own only stage.

    Raises:
        ValueError: layers that do not rise, ratios that grow or do not fit to the layers, a budget in tokens.
    """

    layer: int = field(
        default=1, init=False, metadata={"help": "The first of the layers before which tokens leave.", "kind": "int"}
    )
    layers: tuple[int, ...] = setting((), "Tokens leave before each of these decoder layers, in rising order.", "ints")
    ratios: tuple[float, ...] = setting(
        (),
        "Fraction left after each cut, of all tokens; the last is keep_ratio. Empty: the method's own schedule.",
        "floats",
        above=0,
        max=1,
    )

    def __post_init__(self) -> None:
        validate(self, self.label)
        if self.ratios and self.keep_ratio is None:
            object.__setattr__(self, "keep_ratio", self.ratios[-1])
        super().__post_init__()
        if self.keep_tokens is not None:
            raise ValueError(
                f"{self.label}: keep_tokens={self.keep_tokens} cannot be shared by stages; give keep_ratio"
            )
        if not self.layers or any(after <= before for before, after in pairwise(self.layers)):
            raise ValueError(f"{self.label}: layers must be one or more, in rising order, got {list(self.layers)}")
        if self.ratios and (
            len(self.ratios) != len(self.layers)
            or self.ratios[-1] != self.keep_ratio
            or any(after > before for before, after in pairwise(self.ratios))
        ):
            raise ValueError(
                f"{self.label}: ratios must be {len(self.layers)} numbers that never grow and end with "
                f"keep_ratio={self.keep_ratio}, got {list(self.ratios)}"
            )
        object.__setattr__(self, "layer", self.layers[0])

    @property
    def stages(self) -> tuple[Selector, ...]:
        if len(self.layers) == 1:
            return (self,)
        ratios = self.ratios or self.schedule()
        return tuple(
            replace(self, layers=(layer,), ratios=(), keep_ratio=ratio)
            for layer, ratio in zip(self.layers, ratios, strict=True)
        )

    def schedule(self) -> tuple[float, ...]:
        """Return the fraction left after each cut; without `ratios` every cut leaves the same part of its input."""
        cuts = len(self.layers)
        return (*(self.ratio ** (i / cuts) for i in range(1, cuts)), self.ratio)


@register("pyramid_drop")
@dataclass(frozen=True, kw_only=True)
class PyramidDrop(Renumbered, Progressive):
    """Keep, before each of `layers`, the highest attention of the last prompt row in that very layer.

    PyramidDrop (arXiv 2410.17247). After cut i of S a fraction keep_ratio^(i/S) of all tokens is left, so 0.125 gives
    the paper's 1/2, 1/4, 1/8. `select` of the whole makes the last cut at the first layer; `stages` are the cuts.
    """

    reads = "attention"
    query_aware = True
    trend = True

    layers: tuple[int, ...] = setting(
        (8, 16, 24),
        "Tokens leave before each of these decoder layers, in rising order; the defaults are those for 32 layers.",
        "ints",
        min=1,
    )
    paper_compat: bool = setting(
        False,
        "As released: counts are truncated, not rounded, and survivors of each cut renumbered; a token that padding "
        "touches is padding where padding is left out.",
        "bool",
    )

    def budget(self, total: int) -> int:
        if self.paper_compat:
            return rounded_down(self.ratio, total)
        return super().budget(total)

    @property
    def padded(self) -> float:
        return TOUCHED if self.paper_compat else super().padded

    @property
    def needs(self) -> frozenset[Signal]:
        return frozenset({LookAheadRows(self.layer)})

    def score(self, tokens: VisualTokens) -> Tensor:
        rows: Tensor = tokens.signals[LookAheadRows(self.layer)]
        return rows.float().mean((0, 1))  # [h, 1, n] -> [n]

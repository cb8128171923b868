"""The contract of a selector: what it may read (`VisualTokens`) and what it answers (`Selection`)."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from .budget import kept_tokens
from .settings import setting, validate

POSITIONS = ("keep", "repack", "pospad")
MARKERS = ("mean", "last")


@dataclass(frozen=True)
class Signal:
    """Something a selector wants to read; captured once, shared by all methods."""


@dataclass(frozen=True)
class AttentionRows(Signal):
    """Attention of the last `rows` real prompt rows of decoder layer `layer`.

    Value: fp32 [h, rows, n], softmax over ALL keys, then sliced to the sample's current visual tokens.
    """

    layer: int
    rows: int = 1


@dataclass(frozen=True, eq=False)
class VisualTokens:
    """The visual tokens of one sample at one decoder-layer boundary, in sequence order; n of them are left."""

    total: int  # N: visual tokens of the prompt before any pruning
    ordinal: Tensor  # Long[n] index of each current token among the N
    item: Tensor  # Long[n] running number of the span (image, tile, frame, video) inside the sample
    coords: Tensor  # Long[n, 3] (t, y, x) in its span's merged grid; -1 where unknown or structural (newline tokens)
    grids: tuple[tuple[int, int, int] | None, ...]  # per span (t, h, w) after merging; None if unknown
    signals: Mapping[Signal, Tensor]
    seed: int  # the policy's seed

    def __len__(self) -> int:
        return len(self.ordinal)


@dataclass(frozen=True, eq=False)
class Selection:
    """Which of the current tokens stay."""

    keep: Tensor  # Long[k], sorted, unique, indices into 0..n-1 of the current tokens
    scores: Tensor | None = None  # fp32 [n], higher = keep
    stats: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Selector(ABC):
    """Base of every selector: a budget, a place, a position policy, and `select`.

    Raises:
        TypeError, ValueError: a setting of the wrong type or out of range, or not exactly one of the two budgets.
    """

    name: ClassVar[str] = ""  # set by `register`
    reads: ClassVar[str] = "nothing"  # what the choice depends on, in words, for tables
    resizes_pixels: ClassVar[bool] = False

    keep_ratio: float | None = setting(
        None, "Fraction of the prompt's visual tokens that stays.", "float", above=0, max=1
    )
    keep_tokens: int | None = setting(None, "Number of visual tokens that stay, instead of keep_ratio.", "int", min=1)
    layer: int = setting(0, "Tokens leave before this decoder layer; 0 is before the LLM.", "int", min=0)
    positions: str = setting(
        "keep",
        "keep: original positions with gaps; repack: renumbered, 1-D RoPE only; pospad: one marker per dropped run.",
        "str",
        choices=POSITIONS,
    )
    marker: str = setting(
        "mean",
        "Embedding of a pospad marker: the mean of the dropped run, or the last token of it.",
        "str",
        choices=MARKERS,
    )

    def __post_init__(self) -> None:
        validate(self, self.label)
        if (self.keep_ratio is None) == (self.keep_tokens is None):
            raise ValueError(
                f"{self.label}: give exactly one of keep_ratio (> 0, <= 1) and keep_tokens (>= 1), "
                f"got keep_ratio={self.keep_ratio!r}, keep_tokens={self.keep_tokens!r}"
            )

    @property
    def label(self) -> str:
        """The name for messages."""
        return self.name or type(self).__name__

    @property
    def needs(self) -> frozenset[Signal]:
        """Signals that must be captured before `select` can run."""
        return frozenset()

    @property
    def neutral(self) -> bool:
        """True if this selector never touches anything."""
        return self.keep_ratio == 1.0

    def budget(self, total: int) -> int:
        """Tokens that stay out of `total` original ones."""
        return kept_tokens(total, self.keep_ratio, self.keep_tokens)

    @abstractmethod
    def select(self, tokens: VisualTokens) -> Selection:
        """Choose min(budget(tokens.total), len(tokens)) of the current tokens of one sample."""


@dataclass(frozen=True, kw_only=True)
class ScoreSelector(Selector):
    """A selector that ranks: override `score`, the highest stay, ties go to the lowest index."""

    @abstractmethod
    def score(self, tokens: VisualTokens) -> Tensor:
        """fp32 [n], higher = keep."""

    def select(self, tokens: VisualTokens) -> Selection:
        scores = self.score(tokens).float()
        if scores.shape != (len(tokens),) or not bool(torch.isfinite(scores).all()):
            raise ValueError(
                f"{self.label}: scores must be {len(tokens)} finite numbers, got shape {tuple(scores.shape)} "
                f"with {int((~torch.isfinite(scores)).sum())} that are not; check the model's numerics (dtype)"
            )
        return Selection(top(scores, self.budget(tokens.total)), scores)


def top(scores: Tensor, k: int) -> Tensor:
    """Indices Long[min(k, n)], ascending, of the k highest scores [n]; ties go to the lowest index."""
    return scores.sort(descending=True, stable=True).indices[:k].sort().values


_methods: dict[str, type[Selector]] = {}
registry: Mapping[str, type[Selector]] = MappingProxyType(_methods)
Method = TypeVar("Method", bound=type[Selector])


def register(name: str) -> Callable[[Method], Method]:
    """Class decorator: make a selector known under `name` (lower case, digits, underscores).

    Raises:
        ValueError: the name is malformed or taken. TypeError: the class is no `Selector`.
    """

    def add(cls: Method) -> Method:
        if not (isinstance(cls, type) and issubclass(cls, Selector)):
            raise TypeError(f"register({name!r}) decorates subclasses of pruning.Selector, got {cls!r}")
        if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name):
            raise ValueError(
                f"method name {name!r} must be lower case words joined by underscores, e.g. 'attention_topk'"
            )
        if name in _methods:
            taken = _methods[name]
            raise ValueError(
                f"method name {name!r} is taken by {taken.__module__}.{taken.__qualname__}; choose another"
            )
        cls.name = name
        _methods[name] = cls
        return cls

    return add

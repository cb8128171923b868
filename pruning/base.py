"""The contract of a selector: settings, signals and `pick`; budget, padding and segments are handled here."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from vlmopt.core import Configured, Registry, setting, validate

from .budget import ALLOCATIONS, allocate, kept_tokens, segments
from .join import join
from .markers import MARKERS, POSITIONS, check_marker
from .padding import PADDED, PADDING, valid_cells
from .signals import Pixels, Signal, Sinks, VisualEmbeds, Weights
from .tokens import Selection, VisualTokens


@dataclass(frozen=True, kw_only=True)
class Selector(Configured, ABC):
    """Base of every selector: a budget and how it is shared, a place, a position policy, and `pick`.

    Raises:
        TypeError, ValueError: a setting of the wrong type or out of range, or not exactly one of the two budgets.
    """

    name: ClassVar[str] = ""  # set by `register`
    reads: ClassVar[str] = "nothing"  # what the choice depends on, in words, for tables
    query_aware: ClassVar[bool] = False  # the choice depends on the question, so a pruned cache is bound to it
    unbound: ClassVar[str] = ""  # the setting with which a method that reads the question does not
    adaptive: ClassVar[bool] = False  # the method itself decides how many stay; the budget is only a ceiling
    resizes_pixels: ClassVar[bool] = False
    merges: ClassVar[bool] = False  # writes new embeddings into tokens that stay, by its `written`
    before_tower: ClassVar[bool] = False  # chooses what the tower encodes; another selector may follow at layer 0

    keep_ratio: float | None = setting(
        None, "Fraction of the prompt's visual tokens that stays.", "float", above=0, max=1
    )
    keep_tokens: int | None = setting(None, "Number of visual tokens that stay, instead of keep_ratio.", "int", min=1)
    layer: int = setting(0, "Tokens leave before this decoder layer; 0 is before the LLM.", "int", min=0)
    positions: str | None = setting(
        None,
        "keep: original positions with gaps; repack: renumbered, 1-D RoPE only; pospad: one marker per dropped run. "
        "If not given: keep, and with paper_compat as released.",
        "str",
        choices=POSITIONS,
    )
    marker: str = setting(
        "mean",
        "Embedding of a pospad marker: the mean of the dropped run, the last token of it, or one that was trained "
        "(layer 0 only).",
        "str",
        choices=MARKERS,
    )
    marker_from: str | None = setting(
        None,
        "Where a trained marker is: name of a bundled checkpoint, directory or Hub id with a FocusUI scorer.",
        "str",
    )
    padding: str = setting(
        "keep",
        "Padding as candidates: keep: like any token; square: never the mean-colour bars of square padding; "
        "blank: nor any blank bars along the border (letterboxes).",
        "str",
        choices=PADDING,
    )
    sinks: str = setting(
        "keep",
        "Attention sinks, from layer 1 on: keep: like any token; leave_out: they stay only where all others do.",
        "str",
        choices=("keep", "leave_out"),
    )
    allocation: str = setting(
        "proportional",
        "How segments share the budget: in proportion to their tokens, equally, one pool for all (global), by change "
        "from frame to frame, by distinctiveness, or the first segment whole.",
        "str",
        choices=ALLOCATIONS,
    )
    segment: str = setting(
        "image", "What a segment is: an image, tile or video; or every frame.", "str", choices=("image", "frame")
    )
    min_per_segment: int = setting(1, "Tokens every segment keeps at least, while the budget lasts.", "int", min=0)

    def __post_init__(self) -> None:
        validate(self, self.label)
        if (self.keep_ratio is None) == (self.keep_tokens is None):
            raise ValueError(
                f"{self.label}: give exactly one of keep_ratio (> 0, <= 1) and keep_tokens (>= 1), "
                f"got keep_ratio={self.keep_ratio!r}, keep_tokens={self.keep_tokens!r}"
            )
        check_marker(self.label, self.marker, self.marker_from, self.layer, self.marker_source)

    @property
    def label(self) -> str:
        """The name for messages."""
        return self.name or type(self).__name__

    @property
    def ratio(self) -> float:
        """The fraction that stays; raises `ValueError` where a number of tokens was given."""
        if self.keep_ratio is None:
            raise ValueError(f"{self.label}: keep_tokens={self.keep_tokens} is no fraction; give keep_ratio")
        return self.keep_ratio

    @property
    def stages(self) -> tuple[Selector, ...]:
        """The cuts this method makes, one selector each; several for a progressive method."""
        return (self,)

    @property
    def needs(self) -> frozenset[Signal]:
        """Signals that `pick` reads."""
        return frozenset()

    @property
    def captures(self) -> frozenset[Signal]:
        """Signals that must be captured before `select` can run: `needs`, and those of the shared settings."""
        extra: set[Signal] = set() if self.padding == "keep" else {Pixels()}
        extra |= {Sinks()} if self.sinks == "leave_out" else set()
        if self.allocation in ("temporal_change", "distinctiveness"):
            extra.add(VisualEmbeds())
        return self.needs | extra

    @property
    def numbering(self) -> str:
        """What becomes of positions: "keep", "repack" or "pospad"."""
        return self.positions or "keep"

    @property
    def renumbering(self) -> str:
        """Which setting of this method asks for "repack", for messages."""
        asked = "positions='repack'" if self.positions else "paper_compat=True (as released: positions='repack')"
        return f"{self.label}: {asked}"

    @property
    def padded(self) -> float:
        """The fraction of a token's area above which it counts as padding."""
        return PADDED

    @property
    def marker_source(self) -> str | None:
        """Where a trained marker comes from."""
        return self.marker_from

    @property
    def weights(self) -> dict[str, bool]:
        """Sources of trained weights that must be loaded, and whether a marker is taken from them."""
        needed = {need.source: False for need in self.needs if isinstance(need, Weights)}
        if self.numbering == "pospad" and self.marker == "trained" and self.marker_source:
            needed[self.marker_source] = True
        return needed

    @property
    def is_identity(self) -> bool:
        """True if this selector never touches anything."""
        return self.keep_ratio == 1.0 and self.padding == "keep"

    @property
    def source(self) -> str | None:
        """Where the measured numbers come from, for the report; None without any."""
        return None

    def check_model(self, model: Mapping[str, Any]) -> None:
        """Raise `ValueError` if measured numbers do not belong to this model (model_type, hidden_size, layers, ...)."""

    def check_projector(self, mlp: bool, differentiable: bool) -> None:
        """Raise `ValueError` if a projector without one hidden layer (not `mlp`), or without derivatives, won't do."""

    def budget(self, total: int) -> int:
        """Return how many tokens stay out of `total` original ones."""
        return kept_tokens(total, self.keep_ratio, self.keep_tokens)

    @abstractmethod
    def pick(self, tokens: VisualTokens, k: int) -> Selection:
        """Choose k of the n tokens of one segment, 1 <= k <= n; padding, structural and held tokens are left out."""

    def select(self, tokens: VisualTokens) -> Selection:
        """Choose min(budget(tokens.total), valid tokens) of the current tokens of one sample.

        Held tokens are never scored: they stay. They count inside the budget and their segment's share of it, and go
        beyond the budget only where it is too small for them. Row separators, and sinks left out, come last.
        """
        structural, valid = tokens.structural, valid_cells(tokens, self.padding, self.padded)
        held = torch.zeros_like(structural) if tokens.held is None else tokens.held
        seen, last = torch.ones_like(structural) if valid is None else valid | structural, structural
        stats = {} if valid is None else {"padding": int((~seen).sum())}
        if self.sinks == "leave_out":
            last = (structural | tokens.signals[Sinks()]) & seen
            stats["sinks"] = int((last & ~structural).sum())
        content = ((seen & ~last) | held).nonzero()[:, 0]
        rest, fixed = (last & ~held).nonzero()[:, 0], held.nonzero()[:, 0]
        k = min(self.budget(tokens.total), len(tokens) if valid is None else len(content) + len(rest))
        k = max(k, len(fixed))
        parts: list[tuple[Tensor, Selection]] = []
        if len(content):
            pool = tokens if len(content) == len(tokens) else tokens.subset(content)
            split = segments(pool, self.segment, self.allocation)
            owed = [int(held[content[index]].sum()) if len(fixed) else 0 for index in split]
            shares = allocate(pool, split, min(k, len(pool)), self.allocation, self.min_per_segment, owed)
            for index, share, own in zip(split, shares, owed, strict=True):
                if share > own:
                    free = index[~held[content[index]]] if own else index
                    part = pool if len(free) == len(pool) else pool.subset(free)
                    whole = share == len(index) and not self.adaptive
                    every = torch.arange(len(free), device=free.device)
                    parts.append((content[free], Selection(every) if whole else self.pick(part, share - own)))
        others = torch.cat([fixed, rest[: max(k - len(content), 0)]])
        return join(parts, others, len(tokens), stats)


@dataclass(frozen=True, kw_only=True)
class ScoreSelector(Selector):
    """Base of selectors that rank: override `score`; the highest stay, ties go to the lowest index."""

    trend: ClassVar[bool] = False  # scores are attention inside the LLM, which rises towards late positions

    @abstractmethod
    def score(self, tokens: VisualTokens) -> Tensor:
        """Return fp32 [n], higher = keep."""

    def pick(self, tokens: VisualTokens, k: int) -> Selection:
        return self.take(tokens, k, finite(self.score(tokens).float(), len(tokens), self.label))

    def take(self, tokens: VisualTokens, k: int, scores: Tensor) -> Selection:
        """Choose by given scores fp32 [n], which may be corrected ones (see `Debias`)."""
        return Selection(top(scores, k), scores)


def finite(scores: Tensor, n: int, label: str) -> Tensor:
    """Return the scores; raise `ValueError` unless they are n finite numbers."""
    if scores.shape != (n,) or not bool(torch.isfinite(scores).all()):
        raise ValueError(
            f"{label}: scores must be {n} finite numbers, got shape {tuple(scores.shape)} "
            f"with {int((~torch.isfinite(scores)).sum())} that are not; check the model's numerics (dtype)"
        )
    return scores


def top(scores: Tensor, k: int) -> Tensor:
    """Return indices Long[min(k, n)], ascending, of the k highest scores [n]; ties go to the lowest index."""
    return scores.sort(descending=True, stable=True).indices[:k].sort().values


registry: Registry[Selector] = Registry(Selector)  # type: ignore[type-abstract]
register = registry.register

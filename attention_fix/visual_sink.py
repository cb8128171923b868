"""VAR: move attention from sinks to the other visual tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vlmopt.core import Signal, setting

from .base import Residual, RowCorrection, RowView, no_rows, register
from .sink_scores import published, published_dims
from .sink_settings import SinkSettings

FLOOR = 1e-12  # above 0, so that a quotient by m_VN stays finite


class Masses(NamedTuple):
    """Attention of each row [B, H, R] on sets of keys, the sets, and where the gate is open."""

    sets: Tensor  # [B, 4, K], see `VisualSink.sets`
    sink: Tensor
    visual_sink: Tensor
    nonsink: Tensor
    open: Tensor  # Bool

    @property
    def divisor(self) -> Tensor:
        """`nonsink`, 1 where the gate is closed: a quotient by 0 has no gradient, even where it is not used."""
        return torch.where(self.open, self.nonsink, 1.0)


@register("visual_sink")
@dataclass(frozen=True, kw_only=True)
class VisualSink(SinkSettings, RowCorrection):
    """Take a fraction of attention from sinks and give it to other visual tokens, in heads that look at those (VAR).

    See What You Are Told: Visual Attention Sink in Large Multimodal Models (arXiv 2503.03321). A token of the prompt is
    a sink where max over `dims` of |x_c| / rms(x) >= tau. The edit acts in a row and head that puts m_I >= 0.2 of its
    attention on the image, at least `min_nonsink_ratio` of it on tokens that are not sinks. There those tokens get
    a_j (1 + recycle m_S / m_VN) and sinks (1 - recycle) a_j, so that rows still sum to 1. The released code counts
    `recycle` and `min_nonsink_ratio` the other way round, 1 - p and 1 - rho; these are the paper's. A row that sees no
    visual sink, or hardly any other visual token, is left alone.

    If a profile says that the model has no sinks, nothing is done; the report and `caution` say so.
    """

    reads = "attention, residual stream"

    layers: str = setting(
        "2:-1", "Decoder layers, as indices and slices; the first two inputs have no sinks yet.", "str"
    )
    recycle: float = setting(0.6, "Fraction of every sink's attention that is given away; p.", "float", min=0, max=1)
    min_nonsink_ratio: float = setting(
        0.5,
        "Share of the image's attention that must lie on other tokens than sinks; rho. 0.5 for descriptions, 0.8 for "
        "questions with short answers.",
        "float",
        min=0,
        max=1,
    )
    min_visual_mass: float = setting(0.2, "Attention that a head must pay to the image.", "float", min=0, max=1)
    min_nonsink_tokens: int = setting(
        8, "Visual tokens other than sinks that a row must see; pruning may leave hardly any.", "int", min=1
    )
    scope: str = setting(
        "all",
        "Where attention of visual sinks goes: all: to all images; per_image: to their own, and that of textual "
        "sinks to each by its attention.",
        "str",
        choices=("all", "per_image"),
    )

    @property
    def needs(self) -> frozenset[Signal]:
        return frozenset() if self.is_identity else frozenset({Residual()})

    @property
    def is_identity(self) -> bool:
        return self.recycle == 0 or self.idle is not None

    @property
    def idle(self) -> str | None:
        if self.profile is None or self.profile.nothing is None:
            return None
        return f"the model has no visual sinks ({self.profile.nothing}; {self.profile.source})"

    def check_model(self, model: Mapping[str, Any]) -> None:
        super().check_model(model)
        if self.profile is None and not (self.dims or published_dims(model) or self.is_identity):
            hint = ""
            if row := published(model):
                hint = f" (unverified for {row.name}: {' or '.join(str(dims) for dims in (row.dims, *row.others))})"
            raise ValueError(
                f"{self.name}: no sink dimensions are published for {model.get('name_or_path') or dict(model)!r}; "
                f"measure them with `vlmopt calibrate` and give its profile, or give dims{hint}"
            )

    def mark(self, hidden: Tensor) -> dict[str, Tensor]:
        return {"sink": self.sinks(hidden)}

    def edit(self, values: Tensor, view: RowView) -> tuple[Tensor, Tensor]:
        sets = view.sets if view.sets is not None else self.sets(view.image, view.marks)
        if sets is None or self.is_identity:
            return values, no_rows(values)
        found = self.weigh(values, view, sets.to(values.dtype))
        if self.scope == "all":
            share = (found.sink / found.divisor)[..., None]
        else:
            share = share_by_image(values, view.span, found)
        nonsink, minus_sink = (keys[:, None, None] for keys in found.sets[:, 2:].unbind(1))
        change = torch.addcmul(minus_sink, share, nonsink)
        return torch.addcmul(values, values, change, value=self.recycle), found.open

    def sets(self, image: Tensor, marks: Mapping[str, Tensor]) -> Tensor | None:
        """Return 0 or 1 per key: all sinks, visual sinks, other visual keys; then minus all sinks, for the edit."""
        sink = marks.get("sink")
        if sink is None:
            return None
        visual_sink = sink & image
        keys = torch.stack([sink, visual_sink, image ^ visual_sink], 1).float()
        return torch.cat([keys, -keys[:, :1]], 1)

    def weigh(self, values: Tensor, view: RowView, sets: Tensor) -> Masses:
        """Compute the masses by one product with [K, 3] indicators, in half the time of masked sums."""
        mass = (values.flatten(1, 2) @ sets[:, :3].mT).view(*values.shape[:3], 3)
        if view.allowed is None:
            reach = sets[:, None, None, 1:3].sum(-1)
        else:  # counted by row, or later images would reach back
            reach = view.allowed.to(values.dtype).flatten(1, 2) @ sets[:, 1:3].mT
            reach = reach.view(len(values), -1, values.shape[2], 2)
        sinks, visual_sinks, nonsinks = mass.unbind(-1)
        wide_open = gate(visual_sinks, nonsinks, self.min_nonsink_ratio, self.min_visual_mass)
        seen = (reach[..., 0] > 0) & (reach[..., 1] >= self.min_nonsink_tokens)
        return Masses(sets, sinks, visual_sinks, nonsinks, wide_open & seen)

    def measure(self, values: Tensor, view: RowView) -> dict[str, Tensor]:
        """Count sinks and visual sinks per sample; average gates open, m_I and attention moved over editable rows."""
        sets = view.sets if view.sets is not None else self.sets(view.image, view.marks)
        if sets is None:
            return {}
        if view.allowed is not None:
            sets = sets * view.allowed.any(2).any(1)[:, None]
        found = self.weigh(values, view, sets.to(values.dtype))
        rows = view.rows[:, None].to(values.dtype)
        total = rows.sum().clamp_min(1) * values.shape[1]

        def mean(x: Tensor) -> Tensor:
            return (x * rows).sum() / total

        return {
            "sinks": found.sets[:, 0].sum(1).mean(),
            "visual_sinks": found.sets[:, 1].sum(1).mean(),
            "gates_open": mean(found.open),
            "visual_mass": mean(found.visual_sink + found.nonsink),
            "moved_mass": mean(self.recycle * found.sink * found.open),
        }


def gate(visual_sink: Tensor, nonsink: Tensor, min_nonsink_ratio: float, min_visual_mass: float) -> Tensor:
    """Return Bool: where attention may move.

    That is where m_I >= min_visual_mass and m_VN / m_I >= min_nonsink_ratio; both limits are at least `FLOOR`.
    """
    visual = visual_sink + nonsink
    return (visual >= max(min_visual_mass, FLOOR)) & (nonsink / visual >= max(min_nonsink_ratio, FLOOR))


def share_by_image(values: Tensor, span: Tensor, found: Masses) -> Tensor:
    """Return [B, H, R, K]: the attention that each visual key but sinks gets, as a fraction of its own.

    An image whose tokens are all sinks gives to all images, like textual sinks.
    """
    place = ranks(span)[:, None, None].expand_as(values)
    own, nonsink = (
        torch.zeros_like(values).scatter_add_(-1, place, values * keys[:, None, None])
        for keys in found.sets[:, 1:3].unbind(1)
    )
    empty = nonsink <= torch.finfo(values.dtype).tiny
    own.masked_fill_(empty, 0.0)
    pool = (found.sink - own.sum(-1)) / found.divisor
    own.div_(nonsink.masked_fill_(empty, 1.0))
    return own.gather(-1, place).add_(pool[..., None])


def ranks(span: Tensor) -> Tensor:
    """Return Long[B, K]: the images' running numbers without gaps, below K whatever was pruned."""
    ordered, index = span.sort(-1)
    steps = torch.nn.functional.pad(ordered.diff(dim=-1) != 0, (1, 0)).cumsum(-1)
    return torch.zeros_like(span).scatter_(-1, index, steps)

"""What a policy means for one image or video alone: how many rows stay, and which, where grid or pixels decide.

An engine encodes an item once and shares its rows among all requests with the same item and policy, so they may depend
on nothing else: every item has a budget of its own, and its random numbers start anew.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from vlmopt.pruning import Signal
from vlmopt.pruning.padding import valid_cells
from vlmopt.pruning.resize import Resize, resize_patches

from . import markers
from .items import GRIDS, PIXELS, Item, anchors, early_signals, pixels_of
from .policies import Served, served, without_padding
from .positions import LARGEST, Span, cells_of, extent_of

FIELDS = ("facts", "keep", "seen", "anchor")
NONE = torch.empty(0, dtype=torch.long)


@dataclass(frozen=True, eq=False)
class Plan:
    """What the front end decided of an item, and the worker needs to know."""

    policy: Served | None
    item_total: int
    count: int  # placeholders
    keep: Tensor = field(default_factory=lambda: NONE)  # Long[k] rows that stay; empty: the worker chooses
    seen: Tensor = field(default_factory=lambda: NONE)  # Long[m] rows to choose among; empty: all
    anchor: Tensor = field(default_factory=lambda: NONE)  # Long[n] the encoded row each stands for; empty: itself
    grid: tuple[int, ...] = ()  # (t, h, w) of the whole item, also where a smaller one is encoded; (): no grid
    step: float = 1.0
    spans: tuple[tuple[int, int], ...] = ()  # (offset in the placeholder range, rows) of each frame, or of the item
    flat: Mapping[str, int] = field(default_factory=dict)  # rows of its fields that are joined along their rows

    def fields(self) -> dict[str, Tensor]:
        """Turn it into tensors, which is what travels."""
        facts = {name: getattr(self, name) for name in ("item_total", "count", "grid", "step", "spans", "flat")}
        text = json.dumps({**facts, "policy": None if self.policy is None else self.policy.text})
        return {
            "facts": torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8),
            **{name: getattr(self, name) for name in FIELDS[1:]},
        }

    @classmethod
    def of(cls, fields: Mapping[str, Tensor]) -> Plan:
        """Read what `fields` made."""
        facts: dict[str, Any] = json.loads(bytes(fields["facts"].tolist()))
        facts |= {name: fields[name] for name in FIELDS[1:]}
        policy = facts.pop("policy")
        return cls(None if policy is None else served(policy), **facts)

    @property
    def rows(self) -> Tensor:
        """Long[count]: rows that have a placeholder, where they are known."""
        return markers.with_ends(self.keep, self.item_total) if self.marker else self.keep

    @property
    def listens(self) -> tuple[Signal, ...]:
        """What has to be heard of the tower while it runs."""
        return () if self.policy is None or len(self.keep) else self.policy.signals

    @property
    def apart(self) -> bool:
        """Text stands between the frames, so each is an image of its own."""
        return len(self.spans) > 1

    @property
    def cells(self) -> Tensor:
        """Long[n, 3]: positions of all rows, relative to where their span begins."""
        return cells_of(self.grid, 0.0 if self.apart else self.step)

    @property
    def marker(self) -> str:
        """What stands for a run of dropped rows (PosPad); empty where nothing does."""
        return "" if self.policy is None or self.policy.numbering != "pospad" else self.policy.last.marker


def dense(item: Item) -> Plan:
    """Let every row stay."""
    return Plan(None, item.total, item.total, keep=torch.arange(item.total), grid=item.grid, step=item.step)


def planned(policy: Served, item: Item, normalized: Callable[[Tensor], Tensor]) -> Plan:
    """Apply a policy to an item.

    Args:
        normalized: gives its pixels as a Hugging Face processor would, in fp32.

    Raises:
        ValueError: the item does not have what the policy reads.
    """
    plan = Plan(policy, item.total, item.total, grid=item.grid, step=item.step)
    seen = torch.arange(item.total)
    if policy.before_tower is not None:
        anchor = anchors(policy.before_tower, item, pixels_of(item, normalized))
        plan, seen = replace(plan, anchor=anchor), (anchor == seen).nonzero()[:, 0]
    selector = policy.selector
    if selector is None:
        return counted(replace(plan, keep=seen))
    tokens = item.tokens(early_signals(selector.captures, item, normalized), policy.seed)
    if (valid := valid_cells(tokens, selector.padding, selector.padded)) is not None:
        seen = seen[(valid | tokens.structural)[seen]]
    if policy.late:
        return counted(replace(plan, seen=seen, count=min(selector.budget(item.total), len(seen))))
    chosen = without_padding(selector).select(tokens if len(seen) == item.total else tokens.subset(seen))
    return counted(replace(plan, seen=seen, keep=seen[chosen.keep]))


def counted(plan: Plan) -> Plan:
    """Complete a plan with its number of placeholders."""
    if len(plan.keep):
        return replace(plan, count=len(plan.rows))
    return replace(plan, count=markers.slots(plan.item_total, plan.count)) if plan.marker else plan


def smaller(plan: Plan, item: Item) -> dict[str, Tensor]:
    """Make pixels and grid as the tower shall see them, where the policy changes them."""
    pixels = item.fields.get(PIXELS[item.modality])
    if plan.policy is None or pixels is None:
        return {}
    selector, vision = plan.policy.last, item.config.vision_config
    if len(plan.anchor):
        encoded = plan.anchor == torch.arange(item.total)
        return {PIXELS[item.modality]: pixels[encoded.repeat_interleave(vision.spatial_merge_size**2)]}
    if not isinstance(selector, Resize):
        return {}
    t, h, w = item.grid
    merge = vision.spatial_merge_size
    new = torch.tensor([t, *(n * merge for n in selector.grid(t, h, w))])
    old = item.fields[GRIDS[item.modality]]
    layout = (vision.patch_size, merge, vision.temporal_patch_size)
    resized = resize_patches(pixels.float(), old[None], new[None], *layout)
    whole = pixels.dtype == torch.uint8
    resized = resized.round() if whole else resized
    return {PIXELS[item.modality]: resized.to(pixels.dtype), GRIDS[item.modality]: new.to(old)}


def spans_of(embed: Tensor, frames: int, plan: Plan) -> tuple[tuple[int, int], ...]:
    """Tell (offset, rows) of each frame among the placeholders that are left, also of frames that lost all rows.

    Args:
        embed: Bool[L], which tokens of the whole placeholder text are rows; those of a frame lie together.
        frames: into how many parts of equal size the text cuts the rows.
    """
    places = embed.nonzero()[:, 0].view(frames, -1)
    each = places.shape[1]
    if frames == 1:
        return ((int(places[0, 0]), plan.count),)
    kept = torch.bincount(plan.rows // each, minlength=frames).tolist()
    spans, left = [], 0
    for first, rows in zip(places[:, 0].tolist(), kept, strict=True):
        spans.append((first - left, rows))
        left += each - rows
    return tuple(spans)


def beyond(plan: Plan) -> int:
    """Tell by how much positions behind an item exceed the number of its rows; 0 without a grid."""
    if not plan.grid:
        return 0
    extents = [span.extent for span in frames_of(plan)]
    if max(extents) > LARGEST:
        raise ValueError(f"an image or video takes {max(extents)} positions; at most {LARGEST} can be told apart")
    return max(sum(extents) - plan.count, 0)


def frames_of(plan: Plan, start: int = 0) -> list[Span]:
    """Tell where the rows of an item whose placeholders begin at `start` lie, and their cells where they are known."""
    t, h, w = plan.grid
    extent = max(h, w) if plan.apart else extent_of((t, h, w), plan.step)
    rows = [rows for _, rows in plan.spans]
    known: Sequence[Tensor | None] = plan.cells[plan.rows].split(rows) if len(plan.keep) else [None] * len(rows)
    return [
        Span(start + offset, count, extent, of_frame)
        for (offset, count), of_frame in zip(plan.spans, known, strict=True)
    ]

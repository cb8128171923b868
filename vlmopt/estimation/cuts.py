"""What a policy leaves: the share of patches that the tower encodes, and visual tokens at every layer of the LLM."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from vlmopt.pruning import Selector

from ..families import family_of
from ..kv import Eviction
from ..policy import Policy
from .tokens import ImageTokens


@dataclass(frozen=True)
class Cut:
    """A selector and what it chooses among."""

    selector: Selector
    before: float  # visual tokens that it sees
    after: float  # that it leaves, markers not counted


@dataclass(frozen=True)
class Plan:
    """A policy over one prompt."""

    images: tuple[ImageTokens, ...]  # as the tower sees them
    encoded: float  # share of their patches that it encodes
    visual: tuple[float, ...]  # visual tokens and markers at each layer
    text: int
    cuts: tuple[Cut, ...]
    kv: Eviction | None  # of the cache, when the prompt is over
    notes: tuple[str, ...]

    @property
    def lengths(self) -> list[float]:
        """Tokens of the prompt at each layer."""
        return [n + self.text for n in self.visual]

    @property
    def held(self) -> list[float]:
        """Tokens of the prompt that each layer's cache keeps; layers that share a budget unevenly have this mean."""
        if self.kv is None:
            return self.lengths
        ends = self.kv.first + self.kv.recent
        free = self.visual if self.kv.protect == "text" else [max(n - ends, 0) for n in self.lengths]
        return [n - (1 - self.kv.keep_ratio) * competing for n, competing in zip(self.lengths, free, strict=True)]


def plan(
    policy: Policy, images: Sequence[ImageTokens], text: int, layers: int, config: Any, assumed: float | None, name: str
) -> Plan:
    """Follow the cuts of a policy through the layers.

    Args:
        text: tokens of the prompt that are not visual. layers: of the LLM.
        assumed: fraction that methods leave which decide it themselves.
        name: of the policy, for messages.

    Raises:
        ValueError: such a method without `assumed`, a cut behind the last layer, or a method that this family lacks.
    """
    total = sum(p.tokens for p in images)
    encoded, kept, markers, cuts = 1.0, float(total), 0.0, []
    seen = tuple(images)
    visual = [kept] * layers
    for selector in policy.active if total else ():
        if selector.layer >= layers:
            raise ValueError(
                f"policy {name}: {selector.label} cuts before layer {selector.layer}, the model has {layers} layers"
            )
        if (selector.before_tower or selector.resizes_pixels) and not family_of(config).patch_grid:
            raise ValueError(f"policy {name}: {selector.label} cannot act on pixels of {config.model_type} models")
        before = kept
        if selector.resizes_pixels:
            seen = tuple(resized(p, selector, config.vision_config.spatial_merge_size) for p in seen)
            kept = float(sum(p.projected for p in seen))
        else:
            kept = min(kept, left(selector, total, assumed, name))
        if selector.before_tower:
            encoded = kept / total
        markers = runs(total, kept) if selector.numbering == "pospad" else markers
        visual[selector.layer :] = [kept + markers] * (layers - selector.layer)
        cuts.append(Cut(selector, before, kept))
    return Plan(seen, encoded, tuple(visual), text, tuple(cuts), policy.kv, notes(policy, markers, assumed))


def left(selector: Selector, total: int, assumed: float | None, name: str) -> float:
    """Return the tokens that a selector leaves of the prompt's `total`."""
    budget = float(selector.budget(total))
    if not selector.adaptive:
        return budget
    if assumed is None:
        raise ValueError(
            f"policy {name}: {selector.label} decides by the content how many tokens stay, which no config tells; "
            "state an assumption, e.g. --assume-keep 0.5"
        )
    return min(budget, assumed * total)


def resized(image: ImageTokens, selector: Any, merge: int) -> ImageTokens:
    """Return the smaller image that the resize control hands to the tower."""
    grids = []
    for h, w in image.grids:
        small = selector.grid(1, h // merge, w // merge)
        grids.append((small[0] * merge, small[1] * merge))
    tokens = sum(h * w for h, w in grids) // merge**2
    return replace(image, grids=tuple(grids), projected=tokens)


def runs(total: float, kept: float) -> float:
    """Return the expected runs of dropped tokens, each of which gets a marker, if tokens stay at random."""
    return (total - kept) * (kept + 1) / total


def notes(policy: Policy, markers: float, assumed: float | None) -> tuple[str, ...]:
    """Return which parts of a policy are not in the figures, or only by assumption."""
    said = []
    if policy.corrections:
        names = ", ".join(correction.name for correction in policy.corrections)
        said.append(f"{names}: time of corrections is not modelled (measured: 2 to 15 % of a generated token)")
    if policy.prefill is not None and not policy.prefill.is_identity:
        said.append("sparse prefill is not modelled: which share of the attention it computes depends on the content")
    if policy.eviction is not None:
        said.append(f"{policy.eviction.label}: time and memory of choosing keys are not priced")
    if policy.reading is not None:
        said.append("sparse reading is not modelled: generated tokens are as if every layer read all keys")
    if policy.steps:
        names = ", ".join(step.name for step in policy.steps)
        said.append(
            f"{names}: second streams are not priced; one that sees pixels doubles everything, text its decoding"
        )
    if markers:
        said.append(f"{math.ceil(markers)} markers, as if the kept tokens lay at random")
    if assumed is not None and any(s.adaptive and not s.resizes_pixels for s in policy.active):
        said.append(f"assumed: methods that decide it themselves leave {100 * assumed:g} %")
    return tuple(said)

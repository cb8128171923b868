"""FastVID: cut a video into scenes; keep of each the attended tokens, and merged ones around its density peaks."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vlmopt.core.settings import setting

from .base import Selector, finite, register, top
from .budget import apportion, segments
from .cluster import density_peaks
from .signals import Signal, VisionAttention, VisualEmbeds
from .tokens import Selection, VisualTokens, Written

NEIGHBOURS = 4  # that the density of a token counts


@register("fastvid")
@dataclass(frozen=True, kw_only=True)
class FastVID(Selector):
    """Cut the video into scenes where frames change, keep the attended tokens of each and merge the others.

    FastVID: Dynamic Density Pruning for Fast Video Large Language Models (arXiv 2503.11187), the rule for
    LLaVA-OneVision: a scene ends where adjacent frame means are least alike (`scenes` - 1 times, and wherever their
    cosine is below `tau`). Scenes share the budget by their tokens; `context` of it goes to density peaks of every
    `stride`-th frame of the scene, the other part to the most attended tokens of each frame. What is dropped is merged
    into the peak most like it, once per frame with peaks: peak = w peak + (1 - w) mean, w = max(1 / (m + 1), beta) with
    m merged tokens. Densities are of what the language model is given; equal ones go by index, not by lot. An image is
    one scene of one frame.
    """

    reads = "vision attention"
    merges = True

    layer: int = setting(0, "Always 0: tokens leave before the LLM.", "int", min=0, max=0)
    segment: str = setting("image", "Always image: the method itself shares among frames.", "str", choices=("image",))
    tower_layer: int = setting(
        -2, "Block of the vision tower whose attention decides; negative counts from the end.", "int"
    )
    scenes: int = setting(8, "Scenes that a video has at least, while its frames last.", "int", min=1)
    tau: float = setting(0.9, "A scene ends where frame means have a lower cosine.", "float", min=-1, max=1)
    context: float = setting(0.4, "Fraction of a scene's budget that goes to merged tokens.", "float", min=0, max=1)
    stride: int = setting(4, "One of so many frames of a scene has merged tokens.", "int", min=1)
    beta: float = setting(0.6, "Weight that a peak keeps at least when others merge into it.", "float", min=0, max=1)

    @property
    def needs(self) -> frozenset[Signal]:
        return frozenset({VisualEmbeds(), VisionAttention(self.tower_layer)})

    def pick(self, tokens: VisualTokens, k: int) -> Selection:
        embeds = tokens.signals[VisualEmbeds()].float()
        attention = finite(tokens.signals[VisionAttention(self.tower_layer)].float(), len(tokens), self.label)
        frames = segments(tokens, "frame", "proportional")
        means = torch.stack([embeds[index].mean(0) for index in frames])
        scenes = split(frames, ends(means, self.scenes, self.tau).tolist())
        sizes = [sum(map(len, scene)) for scene in scenes]
        budgets = apportion(sizes, k, sizes, 1)
        keep: list[Tensor] = []
        origin = torch.full((len(tokens),), -1, device=embeds.device)
        merged: list[tuple[Tensor, Tensor, Tensor]] = []  # peaks, their new embeddings, how many went into each
        for scene, budget in zip(scenes, budgets, strict=True):
            salient, peaks, rest = self.chosen(embeds, attention, scene, budget)
            keep += [*salient, *peaks]
            if peaks:
                merged += [(index, *self.merge(embeds, index, rest)) for index in peaks]
                centres = torch.cat(peaks)
                origin[rest] = centres[nearest(embeds[rest], embeds[centres])]
        slots, written, counts = (torch.cat(x) for x in zip(*merged, strict=True)) if merged else (origin[:0],) * 3
        filled = counts.nonzero()[:, 0]  # a peak into which nothing went stays a patch
        dtype = tokens.signals[VisualEmbeds()].dtype
        return Selection(
            torch.cat(keep).sort().values,
            attention,
            {"scenes": len(scenes), "contextual": len(slots)},
            Written(slots[filled], written[filled].to(dtype), origin) if merged else None,
        )

    def chosen(
        self, embeds: Tensor, attention: Tensor, scene: list[Tensor], budget: int
    ) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """Return salient tokens of every frame of a scene, peaks of the frames that have some, and all other tokens."""
        sizes = [len(index) for index in scene]
        context = min(max(math.floor(self.context * budget + 1e-9), int(self.context > 0)), budget)
        room = [n if i % self.stride == 0 else 0 for i, n in enumerate(sizes)]
        counts = apportion(room, context, room, 0)
        caps = [n - count for n, count in zip(sizes, counts, strict=True)]
        shares = apportion(sizes, budget - sum(counts), caps, 0)
        salient, peaks, rest = [], [], []
        for index, share, count in zip(scene, shares, counts, strict=True):
            attended = top(attention[index], share)
            others = index[without(len(index), attended)]
            salient.append(index[attended])
            if count:
                centres = density_peaks(embeds[others], count, NEIGHBOURS)[0]
                peaks.append(others[centres])
                others = others[without(len(others), centres)]
            rest.append(others)
        return salient, peaks, torch.cat(rest)

    def merge(self, embeds: Tensor, peaks: Tensor, rest: Tensor) -> tuple[Tensor, Tensor]:
        """Return embeddings [c, d] of peaks Long[c] with the tokens `rest` Long[r] merged in, and how many each got."""
        # A product with 0 and 1, because adding in place by index is not repeatable on a GPU.
        into = nearest(embeds[rest], embeds[peaks])
        member = (into == torch.arange(len(peaks), device=into.device)[:, None]).float()
        counts = member.sum(1)
        mean = member @ embeds[rest] / counts.clamp_min(1)[:, None]
        weight = (1 / (counts + 1)).clamp_min(self.beta)[:, None]
        weight = torch.where(counts[:, None] > 0, weight, 1.0)
        return weight * embeds[peaks] + (1 - weight) * mean, counts


def ends(means: Tensor, scenes: int, tau: float) -> Tensor:
    """Return Bool[T - 1]: whether a scene ends behind frame t of T, by the frame means [T, d]."""
    unit = normalize(means, dim=1)
    alike = (unit[1:] * unit[:-1]).sum(1)
    lowest = alike.sort(stable=True).indices[: scenes - 1]
    return (alike < tau).index_fill(0, lowest, True)


def split(frames: list[Tensor], last: list[bool]) -> list[list[Tensor]]:
    """Return the frames of every scene, given which of them but the last one end a scene."""
    scenes = [frames[:1]]
    for frame, new in zip(frames[1:], last, strict=True):
        if new:
            scenes.append([])
        scenes[-1].append(frame)
    return scenes


def nearest(rows: Tensor, centres: Tensor) -> Tensor:
    """Return Long[r]: the centre [c, d] of highest cosine to each row [r, d], the first in a tie."""
    return (normalize(rows, dim=1) @ normalize(centres, dim=1).T).argmax(1)


def without(n: int, taken: Tensor) -> Tensor:
    """Return Long[n - t]: the places 0..n-1 that are not among `taken` Long[t], ascending; the host need not wait."""
    flags = torch.zeros(n, dtype=torch.uint8, device=taken.device).index_fill(0, taken, 1)
    return flags.sort(stable=True).indices[: n - len(taken)]

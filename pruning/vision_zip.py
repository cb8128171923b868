"""VisionZip: keep the tokens that the vision tower attends to, and a few that gather up the rest."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vlmopt.core.settings import setting

from .base import ScoreSelector, register
from .released import Renumbered
from .signals import Projector, ProjectorCall, Signal, VisionAttention, VisionKeys
from .tokens import Selection, VisualTokens, Written


@register("vision_zip")
@dataclass(frozen=True, kw_only=True)
class VisionZip(Renumbered, ScoreSelector):
    """Keep dominant tokens by attention inside the vision tower; merge the rest into evenly spread contextual tokens.

    VisionZip: Longer is Better but Not Necessary in Vision Language Models (arXiv 2412.04467). Each remaining token
    goes to the target whose key is most alike. Features merge before the projector, h = mean over target and assigned,
    and the result takes the target's place, so dominant and contextual tokens together are exactly the budget. The
    paper adds the mean of the assigned to the target, which about doubles the norm the projector was trained on. It
    also hands over the CLS token, which has no slot among the visual tokens and is left out here. So is what the
    released code does on LLaVA-NeXT: another order of tokens, without row separators.
    """

    reads = "vision attention"
    merges = True

    layer: int = setting(0, "Always 0: tokens leave before the LLM.", "int", min=0, max=0)
    tower_layer: int = setting(
        -2, "Block of the vision tower whose attention and keys decide; negative counts from the end.", "int"
    )
    contextual: float = setting(10 / 64, "Fraction of the budget that goes to merged tokens.", "float", min=0, max=1)
    paper_compat: bool = setting(
        False,
        "As released: a merged token is target + mean of assigned, not the mean over all; survivors are renumbered.",
        "bool",
    )

    @property
    def needs(self) -> frozenset[Signal]:
        return frozenset({VisionAttention(self.tower_layer), VisionKeys(self.tower_layer), Projector()})

    def score(self, tokens: VisualTokens) -> Tensor:
        attention: Tensor = tokens.signals[VisionAttention(self.tower_layer)]
        return attention.float()

    def take(self, tokens: VisualTokens, k: int, scores: Tensor) -> Selection:
        count = math.floor(self.contextual * k + 0.5)
        order = scores.sort(descending=True, stable=True).indices
        dominant, rest = order[: k - count].sort().values, order[k - count :].sort().values
        if not count:
            return Selection(dominant, scores)
        written = self.merge(tokens, rest, count)
        return Selection(torch.cat([dominant, written.slots]).sort().values, scores, {"contextual": count}, written)

    def merge(self, tokens: VisualTokens, rest: Tensor, count: int) -> Written:
        """Merge the tokens `rest` Long[r] into `count` <= r."""
        step = len(rest) // count
        targets = slice(0, (count - 1) * step + 1, step)
        keys = normalize(tokens.signals[VisionKeys(self.tower_layer)][rest].float(), dim=1)
        group = (keys @ keys[targets].T).argmax(1)
        group[targets] = torch.arange(count, device=group.device)  # also where two targets have the same key
        call: ProjectorCall = tokens.signals[Projector()]
        patches = call.inputs[rest].float()
        # A product with 0 and 1, because adding in place by index is not repeatable on a GPU.
        member = (group == torch.arange(count, device=group.device)[:, None]).float()
        sums, sizes = (member @ patches.flatten(1)).view(count, *patches.shape[1:]), member.sum(1)[:, None, None]
        if self.paper_compat:
            merged = patches[targets] + (sums - patches[targets]) / (sizes - 1).clamp_min(1)
        else:
            merged = sums / sizes
        slots = rest[targets]
        origin = torch.full((len(tokens),), -1, device=rest.device).scatter(0, rest, slots[group])
        return Written(slots, call.function(merged.to(call.inputs.dtype)), origin)

"""Stage 1: teach the vision tower to say, for every cell, the words true of it.

The projected token of a cell is trained towards the sum of the frozen embeddings of its words, so that the language
model meets visual tokens that already speak its vocabulary. Absolute places are asked for only where the tower has
position embeddings: rotary attention cannot tell them, but then the language model's positions can. A tower that also
sums up the image in one token is asked, with that token, which words occur in it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from vlmopt.synthetic import World
from vlmopt.synthetic.words import BACKGROUND, SECOND_SLOT

from .data import Packer, Share
from .loop import Counts, Marked

SHARPNESS = 10.0  # logit of a word that is fully present; absence of all words of a slot scores half of it
BACKGROUND_WEIGHT = 0.1  # of an object cell
# Sharpness and weight of each slot; neighbouring places are alike, so that telling them apart takes a higher one.
SLOTS = {"name": (SHARPNESS, 1.0), "sort": (SHARPNESS, 1.0), "x": (3 * SHARPNESS, 0.3), "y": (3 * SHARPNESS, 0.3)}
SUMMARY_WEIGHT = 3.0


def cell_targets(slots: torch.Tensor, slot_ids: tuple[torch.Tensor, ...], table: torch.Tensor) -> torch.Tensor:
    """Sum the embeddings of the words of each cell: slots [2 or 4, …] -> […, d]; negative entries add nothing."""
    total = torch.zeros(*slots.shape[1:], table.shape[1])
    for slot, ids in zip(slots, slot_ids, strict=True):
        total = total + table[ids[slot.clamp(min=0)]] * (slot >= 0)[..., None]
    return total


def dense_loss(
    tokens: torch.Tensor, slots: torch.Tensor, slot_ids: tuple[torch.Tensor, ...], table: torch.Tensor
) -> Marked:
    """Compute loss, and hits per kind of word on object cells, from tokens [b, cells, d], slots [2 or 4, b, cells]."""
    tokens = tokens.float()
    objects = (slots[0] >= 0) | (slots[1] >= 0) & (slots[1] != SECOND_SLOT.index(BACKGROUND))
    weight = torch.where(objects, 1.0, BACKGROUND_WEIGHT)
    loss = tokens.new_zeros(())
    counts: Counts = {}
    for (name, (sharpness, share)), slot, ids in zip(SLOTS.items(), slots, slot_ids, strict=False):
        logits = sharpness * F.linear(tokens, table[ids])
        logits = torch.cat([logits, torch.full_like(logits[..., :1], sharpness / 2)], dim=-1)
        target = torch.where(slot == -1, len(ids), slot)
        known = slot != -2
        losses = F.cross_entropy(logits[known], target[known], reduction="none")
        loss = loss + share * (losses * weight[known]).sum() / weight[known].sum()
        hit = logits.detach().argmax(-1) == target
        for family, rows in (("scene", slice(1, None, 2)), ("screen", slice(0, None, 2))):
            chosen = (objects & known & (slot >= 0))[rows]
            counts[f"{family}_{name}"] = (hit[rows][chosen].sum().item(), chosen.sum().item())
    known = (slots != -2).all(dim=0)
    error = (tokens - cell_targets(slots, slot_ids, table)).square().sum(-1)
    loss = loss + 0.2 * (error * weight)[known].sum() / weight[known].sum()
    return loss, counts


def summary_loss(
    summary: torch.Tensor, slots: torch.Tensor, slot_ids: tuple[torch.Tensor, ...], table: torch.Tensor
) -> Marked:
    """Compute loss, and how many words said or true are both, from summary [b, d], slots [2 or 4, b, cells]."""
    loss = summary.new_zeros((), dtype=torch.float32)
    both = either = 0.0
    for slot, ids in zip(slots[:2], slot_ids, strict=False):
        true = F.one_hot(slot + 2, len(ids) + 2).amax(dim=1)[:, 2:]  # without the two kinds of "no word"
        logits = SHARPNESS * (F.linear(summary.float(), table[ids]) - 0.5)
        loss = loss + F.binary_cross_entropy_with_logits(logits, true.float())
        said = logits.detach() > 0
        both, either = both + (said & (true > 0)).sum().item(), either + (said | (true > 0)).sum().item()
    return loss, {"summary": (both, either)}


def look(model: Any, packer: Packer, worlds: list[World]) -> tuple[torch.Tensor, torch.Tensor, Counts]:
    """Return visual tokens of images of one size, how far they are from what they should say, and what was right."""
    table, slots = model.get_input_embeddings().weight, packer.architecture.slots(worlds).flatten(2)
    with torch.autocast("cpu", torch.bfloat16):
        tokens, summary = packer.architecture.see(model, worlds)
    tokens = tokens.float()
    loss, counts = dense_loss(tokens, slots, packer.slot_ids, table)
    if summary is not None:
        summed, more = summary_loss(summary, slots, packer.slot_ids, table)
        loss, counts = loss + SUMMARY_WEIGHT * summed, counts | more
    return tokens, loss, counts


class TowerStage:
    """Work for `Loop`: batches of images through the tower alone."""

    def __init__(self, model: Any, packer: Packer, share: Share) -> None:
        self.model, self.packer, self.share = model, packer, share

    def __call__(self, step: int) -> Marked:
        worlds = self.packer.draw(self.share.first(step), self.share.count, objects=7, questions=0)
        _, loss, counts = look(self.model, self.packer, worlds)
        return loss, counts

"""Stage 1: teach the vision tower to say, for every cell, the words true of it.

The projected token of a cell is trained towards the sum of the frozen embeddings of its words, so that the language
model meets visual tokens that already speak its vocabulary. Absolute places are not asked for: the tower's rotary
attention cannot tell them, the language model's positions can.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from vlmopt.worlds.words import BACKGROUND, SECOND_SLOT

from .data import Packer, Share, patches
from .loop import Counts, Marked

SHARPNESS = 10.0  # logit of a word that is fully present; absence of all words of a slot scores half of it
BACKGROUND_WEIGHT = 0.1  # of an object cell


def cell_targets(slots: torch.Tensor, slot_ids: tuple[torch.Tensor, ...], table: torch.Tensor) -> torch.Tensor:
    """The sum of the words of each cell: slots [2, …] -> […, d]; negative entries add nothing."""
    total = torch.zeros(*slots.shape[1:], table.shape[1])
    for slot, ids in zip(slots, slot_ids, strict=True):
        total = total + table[ids[slot.clamp(min=0)]] * (slot >= 0)[..., None]
    return total


def dense_loss(
    tokens: torch.Tensor, slots: torch.Tensor, slot_ids: tuple[torch.Tensor, ...], table: torch.Tensor
) -> Marked:
    """tokens [b, cells, d], slots [2, b, cells] -> loss, and hits per kind of word on object cells."""
    tokens = tokens.float()
    objects = (slots[1] >= 0) & (slots[1] != SECOND_SLOT.index(BACKGROUND))
    weight = torch.where(objects, 1.0, BACKGROUND_WEIGHT)
    loss = tokens.new_zeros(())
    counts: Counts = {}
    for name, slot, ids in zip(("name", "sort"), slots, slot_ids, strict=True):
        logits = SHARPNESS * F.linear(tokens, table[ids])
        logits = torch.cat([logits, torch.full_like(logits[..., :1], SHARPNESS / 2)], dim=-1)
        target = torch.where(slot == -1, len(ids), slot)
        known = slot != -2
        losses = F.cross_entropy(logits[known], target[known], reduction="none")
        loss = loss + (losses * weight[known]).sum() / weight[known].sum()
        hit = logits.detach().argmax(-1) == target
        for family, rows in (("scene", slice(1, None, 2)), ("screen", slice(0, None, 2))):
            chosen = (objects & known & (slot >= 0))[rows]
            counts[f"{family}_{name}"] = (hit[rows][chosen].sum().item(), chosen.sum().item())
    known = (slots != -2).all(dim=0)
    error = (tokens - cell_targets(slots, slot_ids, table)).square().sum(-1)
    loss = loss + 0.2 * (error * weight)[known].sum() / weight[known].sum()
    return loss, counts


class TowerStage:
    """Work for `Loop`: batches of pictures through the tower alone."""

    def __init__(self, model: Any, packer: Packer, share: Share) -> None:
        self.tower, self.table = model.model.visual, model.get_input_embeddings().weight
        self.packer, self.share = packer, share

    def __call__(self, step: int) -> Marked:
        worlds = self.packer.draw(self.share.first(step), self.share.count, objects=7, questions=0)
        pixels, grid = patches(worlds)
        slots = torch.stack([torch.from_numpy(world.cells) for world in worlds], dim=1).long().flatten(2)
        with torch.autocast("cpu", torch.bfloat16):
            tokens = self.tower(pixels, grid_thw=grid).pooler_output
        return dense_loss(tokens.view(*slots.shape[1:], -1), slots, self.packer.slot_ids, self.table)

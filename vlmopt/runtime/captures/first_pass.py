"""Run a first pass over smaller images, before the LLM: what the question looks at, for the price of a short prompt.

Every block of shrink x shrink cells becomes one token at the position of its middle cell. Where images arrive as
patches of any grid, the tower encodes smaller pixels for it; elsewhere the block's embeddings are averaged. The
decoder's own code runs on the short prompt and stops inside the attention of one layer, before its kernel. Nothing of
it stays: no cache, no marks, no signals of the encoder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vlmopt.pruning import TEXT, FirstPassRows, pack
from vlmopt.pruning.budget import strided

from ...methods import Method
from .. import compat, masks
from ..arguments import PER_LAYER
from ..call import CALL, Call, PromptStep, Session
from ..capture import Capture
from ..context import Rows, VisualContext
from ..hooks.attention import plan_of
from ..place import Place
from ..side_forward import side_forward
from ..smaller_images import levels_of, plan_smaller
from ..structure import ModelStructure
from .read_rows import Look, Looked, Reading

DEPTH = 0.4  # where the attention is read unless a layer is named: between a third and a half of the decoder
Levels = list[Tensor]  # embeddings [k, d], then what DeepStack adds to the first layers


class GivenCalls(list[tuple[str, Callable[..., Any], dict[str, Any]]]):
    """State of the features of a call: modality, function and arguments of every call of a feature function."""


@dataclass(frozen=True, eq=False)
class Short:
    """The shortened prompts, one per sample."""

    index: Tensor  # Long[b, W] logical indices that stay; fillers on the left
    real: Tensor  # Bool[b, W], False on fillers
    block: Tensor  # Long[b, L] place among the W of the block that each visual token lies in; -1 where there is none
    levels: Levels  # [b, L, d], written at the places of the blocks


def layer_of(structure: ModelStructure, need: FirstPassRows) -> int:
    """Return the layer that is read."""
    if need.layer is not None:
        return need.layer
    readable = [i for i, attention in enumerate(structure.attentions) if hasattr(attention, "config")]
    return min(readable, key=lambda i: abs(i - DEPTH * len(structure.layers)), default=0)


class FirstPassRowsCapture(Capture[FirstPassRows]):
    """Capture `FirstPassRows`; the layer's attention is routed through ours, its rows are read in first passes only."""

    def check(self, model: Any, structure: ModelStructure, method: Method, need: FirstPassRows) -> None:
        """Check the layer.

        Grids are known at run time only; the report says where an image had none.
        """
        layer = layer_of(structure, need)
        with_attention = [i for i, attention in enumerate(structure.attentions) if hasattr(attention, "config")]
        if layer not in with_attention:
            raise ValueError(
                f"{method.name}: layer {layer} of {type(model).__name__} has no attention to read in a first pass; "
                f"layers that have: {with_attention or 'none; use instruction_similarity'}"
            )

    def install(self, session: Session, need: FirstPassRows) -> None:
        plan_of(session, layer_of(session.structure, need))

    def take(self, call: Call, modality: str, function: Callable[..., Any], bound: dict[str, Any]) -> None:
        call.features.slot(GivenCalls).append((modality, function, bound))

    def missing(self, step: PromptStep, context: VisualContext, need: FirstPassRows) -> str | None:
        if step.past:
            return "part of the prompt is cached already, and a first pass would not see it"
        if any(span.grid is None for span in context.spans):
            return (
                "the grid of an image is not known (its features were computed before?), so its tokens form no blocks"
            )
        return None

    def read(self, need: FirstPassRows, at: Place) -> Tensor:
        """Return the rows of one sample, fp32 [h, R, n]."""
        rows, block, questions = at.step.remember(
            ("first pass", need), None, lambda: run(at.session, at.step, at.context, need)
        )
        sample = at.batch_row // at.context.expand
        count = questions[sample] if need.rows == TEXT else int(need.rows)
        block = block[sample, at.logical.to(block.device)].to(rows.device)
        mine = rows[sample, :, max(rows.shape[2] - count, 0) :]
        return torch.where(block >= 0, mine[..., block.clamp_min(0)], 0.0)


@torch.no_grad()
def run(
    session: Session, step: PromptStep, context: VisualContext, need: FirstPassRows
) -> tuple[Tensor, Tensor, list[int]]:
    """Return attention rows fp32 [b, H, R, W], the place of every block among the W, and question lengths.

    Places are those of each logical token's block. R is the length of the longest question. Samples run once, however
    many beams they have.
    """
    given = step.given
    samples = slice(None, None, context.expand)
    short = shorten(session, step, context, need.shrink)
    index, real = short.index, short.real
    batch = torch.arange(len(index), device=index.device)[:, None]
    visual = context.visual[samples].to(index.device)
    last = torch.arange(step.q, device=index.device).masked_fill(~visual, -1).amax(1, keepdim=True)
    questions = ((index > last) & (last >= 0) & real).sum(1).tolist()
    visual = visual[batch, index] & real
    extra = {PER_LAYER: given[PER_LAYER][samples][batch, index]} if given.get(PER_LAYER) is not None else {}
    if len(short.levels) > 1:
        extra["visual_pos_masks"] = visual
        extra["deepstack_visual_embeds"] = [level[batch, index][visual] for level in short.levels[1:]]
    positions = step.positions
    positions = positions.expand(*positions.shape[:-2], step.batch, step.q)[..., samples, :].to(index.device)
    positions = positions.gather(-1, index.expand(*positions.shape[:-1], -1))
    layer, count = layer_of(session.structure, need), max(questions) if need.rows == TEXT else int(need.rows)
    identity = torch.arange(index.shape[1], device=index.device).expand_as(index)
    of = Reading(max(count, 1), Rows(identity, None), index.shape[1], index.shape[1], real)
    try:
        side_forward(
            Look(layer, of),
            session.structure.decoder.forward,
            inputs_embeds=short.levels[0][batch, index],
            attention_mask=short_mask(given.get("attention_mask"), samples, index, real),
            position_ids=positions,
            use_cache=False,
            **extra,
        )
    except Looked as looked:
        return looked.rows, short.block, questions
    raise RuntimeError(f"layer {layer} ran without its attention function")


def short_mask(mask: Any, samples: slice, index: Tensor, real: Tensor) -> Any:
    """Return the decoder's mask for the rows that stay: full masks are cut, others made anew from padding.

    Never None: without a mask, gaps in the positions would read as borders of packed sequences.
    """
    if isinstance(mask, dict) and any(is_full(one) for one in mask.values()):
        causal = masks.ragged_mask(index, index, real)  # for kinds that need no mask while nothing is left out
        return {kind: short_mask(one, samples, index, real) if is_full(one) else causal for kind, one in mask.items()}
    if is_full(mask):
        mask = mask if mask.shape[0] == 1 else mask[samples]
        return masks.gather_4d(mask, index, index, None if bool(real.all()) else real, 0)
    return real.long()


def is_full(mask: Any) -> bool:
    return isinstance(mask, Tensor) and mask.ndim == 4


def shorten(session: Session, step: PromptStep, context: VisualContext, shrink: int) -> Short:
    """Choose which tokens stay, and what the blocks are given to carry."""
    samples, device = slice(None, None, context.expand), step.embeds.device
    full = [step.embeds[samples], *(level[samples] for level in deepstack_levels(step))]
    levels = [level.clone() for level in full]
    stay = ~context.visual[samples]
    if context.attention_mask2d is not None:
        stay &= context.attention_mask2d[samples]
    end = step.call.request.length or step.q  # candidates of a helper come after
    stay &= torch.arange(step.q, device=stay.device) < end
    middle_of = torch.full(stay.shape, -1, device=stay.device)  # logical index of the block of each visual token
    encoded = encode(session, step, shrink)
    on_grid = [(s, s.grid) for s in context.spans if s.grid is not None and s.batch_row % context.expand == 0]
    for span, grid in on_grid:
        sample = span.batch_row // context.expand
        number, middle, kept = blocks(span.coords, grid, shrink)
        cell, places = number >= 0, span.index[middle]
        stay[sample, span.index[kept]] = True
        middle_of[sample, span.index[cell]] = places[number[cell]]
        fresh = next(encoded["video" if span.kind == "video" else "image"]) if encoded else None
        if fresh is None:
            cells, number = span.index[cell].to(device), number[cell].to(device)
            fresh = [mean_of_blocks(level[sample, cells], number) for level in full]
        for level, values in zip(levels, fresh, strict=True):
            level[sample, places.to(device)] = values.to(level)
    index, valid = pack(stay)
    real = torch.ones_like(index, dtype=torch.bool) if valid is None else valid
    slots = torch.arange(index.shape[1], device=index.device).expand_as(index)
    slot = torch.full_like(middle_of, -1).scatter(1, index, slots)
    block = torch.where(middle_of >= 0, slot.gather(1, middle_of.clamp_min(0)), -1)
    return Short(index.to(device), real.to(device), block.to(device), levels)


def blocks(coords: Tensor, grid: tuple[int, int, int], shrink: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the block number of each token of an image, the middle cells, and the tokens that stay.

    Long[n], -1 for row separators; Bool[n]; Bool[n]. Blocks are numbered in raster order. A separator stays behind a
    row of cells that has one that stays.
    """
    _, h, w = grid
    rows, columns = -(-h // shrink), -(-w // shrink)
    t, y, x = coords.T
    cell = (coords >= 0).all(1)
    number = (t * rows + (2 * y + 1) * rows // (2 * h)) * columns + (2 * x + 1) * columns // (2 * w)
    in_row, in_column = (torch.isin(at, at.new_tensor(strided(n, k))) for at, n, k in ((y, h, rows), (x, w, columns)))
    before = torch.arange(len(y), device=y.device).masked_fill(~cell, 0).cummax(0).values
    middle = cell & in_row & in_column
    return torch.where(cell, number, -1), middle, middle | (~cell & in_row[before])


def mean_of_blocks(values: Tensor, number: Tensor) -> Tensor:
    """Return [k, d]: the mean of the values [n, d] of every block, by number Long[n] from 0 to k - 1."""
    order, lengths = number.argsort(stable=True), torch.bincount(number)
    return torch.segment_reduce(values[order].float(), "mean", lengths=lengths, axis=0).to(values.dtype)


def deepstack_levels(step: PromptStep) -> Levels:
    """Return what DeepStack adds after the first layers, [B, L, d] each; empty for other models."""
    decoder = step.call.session.structure.decoder
    if hasattr(decoder, "_deepstack_process"):
        compat.require(compat.DEEPSTACK, step.given, type(decoder).__name__)
    where, levels = (step.given.get(name) for name in compat.DEEPSTACK)
    if where is None or levels is None:
        return []
    where = where.to(step.embeds.device)
    return [torch.zeros_like(step.embeds).index_put_((where,), level.to(step.embeds)) for level in levels]


def encode(session: Session, step: PromptStep, shrink: int) -> dict[str, Iterator[Levels]] | None:
    """Encode smaller images: their levels per modality, in order; None where only averages can be had."""
    if not session.family.patch_grid:
        return None
    found: dict[str, list[Levels]] = {}
    for modality, original, bound in step.call.features.slot(GivenCalls):
        plan = plan_smaller(session, modality, bound, lambda t, h, w: (-(-h // shrink), -(-w // shrink)))
        token = CALL.set(None)  # captures of the encoder must not hear of it
        try:
            levels = levels_of(original(**{**bound, **plan.arguments}), plan.small.prod(1).tolist())
        finally:
            CALL.reset(token)
        found.setdefault(modality, []).extend([list(one) for one in zip(*levels, strict=True)])
    return {modality: iter(levels) for modality, levels in found.items()}

"""What was captured, cut to one sample: the value of every signal over its current visual tokens.

A token's row in the projector's output is found by its bits: the model copies those rows into its embeddings, through
window orders, newline tokens and unpadding of its own, so equal bits say which row became which token.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vlmopt.pruning.signals import (
    TEXT,
    Activations,
    AttentionRows,
    FirstPassRows,
    HiddenStates,
    LookAheadRows,
    Novelty,
    Pixels,
    PixelScale,
    Projector,
    ProjectorCall,
    Signal,
    TextEmbeds,
    VisionAttention,
    VisionKeys,
    VisualEmbeds,
    Weights,
)

from . import cells, first_pass
from .activations import Taken
from .attention import Probed
from .call import Step
from .cells import GivenPixels
from .context import PicturePart
from .encoder import Encoded, ProjectorLayers, part
from .lookahead import Ahead
from .place import Place
from .predicting import prompt_text
from .tower import Found

PRINTED = 64  # columns that make up a row's fingerprint


def read(need: Signal, at: Place) -> Any:
    """Value of one signal; the dictionary below says how."""
    return READERS[type(need)](need, at)


def missing(step: Step, needs: frozenset[Signal], asks_text: bool) -> str | None:
    """Why these signals cannot be had in this chunk, None if they can."""
    prompt, text = step.call.request.length, asks_text or any(isinstance(n, (AttentionRows, TextEmbeds)) for n in needs)
    if text and prompt is not None and step.past + step.q < prompt:
        return "chunked prefill: only the last chunk holds the question, earlier chunks are not cut"
    features = step.call.features
    for need in needs:
        if isinstance(need, AttentionRows) and need.layer not in rows_read(step, need):
            return f"no attention rows of layer {need.layer} in this step"
        if isinstance(need, FirstPassRows) and (reason := first_pass.why_not(step)):
            return reason
        if isinstance(need, Activations) and need.layer not in step.slot(Taken):
            return f"no feed-forward activations of layer {need.layer} in this step"
        if isinstance(need, (Projector, VisionAttention, VisionKeys)):
            if not features.slot(Encoded).outputs:
                return "the projector did not run in this call (features were computed before)"
            if not bool((patch_rows(step)[step.context.visual] >= 0).any()):  # type: ignore[union-attr]
                return "this model changes the projector's output before the LLM, so tokens have no row of their own"
        if isinstance(need, Pixels) and not features.slot(GivenPixels):
            return "no pixels came with this call (features were computed before)"
        if isinstance(need, Novelty) and not (features.slot(Found) and step.context.grouped):  # type: ignore[union-attr]
            return "the vision tower did not run in this call, or its pictures cannot be told apart in the prompt"
    return None


def rows_read(step: Step, need: AttentionRows) -> dict[int, Tensor]:
    """By layer."""
    return step.slot(Ahead if isinstance(need, LookAheadRows) else Probed)


def attention_rows(need: AttentionRows, at: Place) -> Tensor:
    scores = rows_read(at.step, need)[need.layer]
    rows = len(text_places(at)) if need.rows == TEXT else need.rows
    return scores[at.row, :, max(scores.shape[2] - rows, 0) :][..., at.logical.to(scores.device)]


def text_places(at: Place) -> Tensor:
    """Long[R]: logical places of the real prompt rows behind the sample's last visual token."""

    def behind() -> Tensor:
        text = prompt_text(at.step, at.row).nonzero()[:, 0]
        return text[text > at.step.context.visual[at.row].nonzero()[-1, 0]]  # type: ignore[union-attr]

    return at.step.remember(("text", at.row), None, behind)


def visual_embeds(need: VisualEmbeds, at: Place) -> Tensor:
    assert at.step.context is not None
    places = at.step.context.visual[at.row].nonzero()[:, 0] if need.whole else at.logical
    return at.step.embeds[at.row, places.to(at.step.embeds.device)]


def text_embeds(need: Signal, at: Place) -> Tensor:
    return at.step.embeds[at.row, text_places(at).to(at.step.embeds.device)]


def hidden_states(need: Signal, at: Place) -> Tensor:
    return at.hidden[at.row, at.physical.to(at.hidden.device)]


def activations(need: Activations, at: Place) -> Tensor:
    """Rows of the layer before the cut."""
    values = at.step.slot(Taken)[need.layer]
    if need.of == "visual":
        return values[at.row, at.physical.to(values.device)]
    rows = at.step.current(at.step.stage - 1)
    text = prompt_text(at.step, at.row)[rows.log[at.row]]
    if rows.valid is not None:
        text = text & rows.valid[at.row]
    return values[at.row, text.to(values.device)]


def patch_rows(step: Step) -> Tensor:
    """Long[B, L]: row of the projector's output that became each logical place; -1 where none did."""

    def match() -> Tensor:
        assert step.context is not None
        rows = torch.cat([out.flatten(0, -2) for out in step.call.features.slot(Encoded).outputs]).to(step.embeds)
        print_, order = fingerprint(rows).sort(stable=True)
        found = torch.full(step.embeds.shape[:2], -1, device=step.embeds.device)
        visual = step.context.visual.to(step.embeds.device)
        wanted = fingerprint(step.embeds[visual])
        index = torch.searchsorted(print_, wanted).clamp_max(len(print_) - 1)
        found[visual] = torch.where(print_[index] == wanted, order[index], -1)
        return found

    return step.remember(("patch rows",), None, match)


def fingerprint(rows: Tensor) -> Tensor:
    """Long[n] from the bits of up to 64 columns of [n, d]; equal rows get equal numbers."""
    columns = torch.linspace(0, rows.shape[1] - 1, min(PRINTED, rows.shape[1]), device=rows.device).long()
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[rows.element_size()]
    bits = rows[:, columns].contiguous().view(integer).long()
    odd = torch.arange(1, 2 * bits.shape[1], 2, device=rows.device) * 0x5851F42D4C957F2D + 1
    return (bits * (odd | 1)).sum(1)


def of_tokens(at: Place, per_row: Tensor, fill: float) -> Tensor:
    """Values [rows, ...] of the projector's rows, taken for the current tokens; `fill` where a token has no row."""
    row = patch_rows(at.step)[at.row, at.logical.to(at.step.embeds.device)].to(per_row.device)
    value = per_row[row.clamp_min(0)]
    known = (row >= 0).view(-1, *[1] * (value.ndim - 1))
    return torch.where(known, value, torch.full_like(value, fill))


def projector(need: Projector, at: Place) -> ProjectorCall:
    encoded, session = at.step.call.features.slot(Encoded), at.session
    module = part(session.anatomy.outer, session.family.projector)
    grouped = torch.cat([group_patches(i, o) for i, o in zip(encoded.inputs, encoded.outputs, strict=True)])

    def function(x: Tensor) -> Tensor:
        return module.forward(x.flatten(0, 1))

    layers = session.slot(ProjectorLayers).of(module, grouped)
    return ProjectorCall(of_tokens(at, grouped, float("nan")), function, layers)


def group_patches(inputs: Tensor, outputs: Tensor) -> Tensor:
    """[rows, p, d_v]: the p consecutive patches that went into each output row."""
    rows = outputs.shape[:-1].numel()
    return inputs.reshape(rows, -1, inputs.shape[-1])


def per_projector_row(at: Place, values: list[Tensor]) -> Tensor:
    """Per-patch values, one [items, patches, c] per tower call, as [rows, c]: mean over the patches of a row."""
    encoded = at.step.call.features.slot(Encoded)
    rows = sum(out.shape[:-1].numel() for out in encoded.outputs)
    arranged = [at.session.family.patches(at.session.anatomy.outer, v) for v in values]
    flat = torch.cat([v.flatten(0, -2) for v in arranged])
    return flat.reshape(rows, -1, flat.shape[-1]).mean(1)


def vision_attention(need: VisionAttention, at: Place) -> Tensor:
    values = at.step.call.features.slot(Encoded).attention[need.layer]
    return of_tokens(at, per_projector_row(at, [v[..., None] for v in values]), 0.0)[:, 0]


def whole_picture(need: VisionAttention, at: Place, part: PicturePart) -> Tensor:
    """The same of a whole picture of which this chunk holds a part; 0 where no row of the projector became a token."""
    values = at.step.call.features.slot(Encoded).attention[need.layer]
    per_row = per_projector_row(at, [v[..., None] for v in values])[:, 0]
    rows = patch_rows(at.step)[at.row, part.index.to(at.step.embeds.device)].to(per_row.device)
    known = rows >= 0
    if not bool(known.any()):
        return per_row.new_zeros(len(part.whole.index))
    patch = (part.whole.coords >= 0).all(1).to(per_row.device)  # row ends and the like are no rows
    place = (patch.cumsum(0) - 1).masked_fill(~patch, -1)
    start = (rows - place[part.inside.to(rows.device)])[known].median()  # equal rows may be taken for one another
    own = start + place
    fits = patch & (own >= 0) & (own < len(per_row))
    return torch.where(fits, per_row[own.clamp(0, len(per_row) - 1)], torch.zeros_like(own, dtype=per_row.dtype))


def vision_keys(need: VisionKeys, at: Place) -> Tensor:
    return of_tokens(at, per_projector_row(at, at.step.call.features.slot(Encoded).keys[need.layer]), 0.0)


def weights(need: Weights, at: Place) -> Any:
    """Follows the embeddings to their device, where the model was moved after it was optimized."""
    return at.session.trained[need.source].scorer.to(at.step.embeds.device)


READERS: dict[type[Signal], Callable[[Any, Place], Any]] = {
    AttentionRows: attention_rows,
    LookAheadRows: attention_rows,
    FirstPassRows: first_pass.first_pass_rows,
    VisualEmbeds: visual_embeds,
    TextEmbeds: text_embeds,
    HiddenStates: hidden_states,
    Activations: activations,
    Pixels: cells.pixels,
    PixelScale: cells.pixel_scale,
    Weights: weights,
    Novelty: cells.novelty,
    Projector: projector,
    VisionAttention: vision_attention,
    VisionKeys: vision_keys,
}

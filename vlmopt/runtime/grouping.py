"""Find which places of a chunk are visual, and how they group into images, tiles and frames."""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce
from operator import or_

import torch
from torch import Tensor

from ..families.base import Piece
from .arguments import OuterArguments
from .call import Call, Session
from .context import ImagePart, VisualContext, VisualSpan
from .ledger import Features
from .predicting import predicting_rows, rows_before_text


def build_context(
    session: Session, arguments: OuterArguments, call: Call, length: int, past: int = 0
) -> VisualContext | None:
    """Return the visual context of this chunk, None when the call brings no visual tokens."""
    ids = arguments.input_ids
    if not arguments.pixels or ids is None or ids.shape[1] != length:
        return None
    modality_of = session.structure.visual_ids
    visual = any_of(ids, modality_of)
    if not bool(visual.any()):
        return None
    mask = arguments.attention_mask2d
    mask = None if mask is None else mask[:, -length:].to(ids.device).bool()
    spans, expand = group(ids, visual, call.features, modality_of)
    grouped = spans is not None
    parts = [] if grouped else parts_of_chunk(ids, call, modality_of, past)
    if spans is None:
        spans, expand = runs(visual), 1
    span = torch.full_like(ids, -1)
    for item in spans:
        span[item.batch_row, item.index] = item.item
    ordinal = visual.long().cumsum(1) - 1
    real = torch.ones_like(visual) if mask is None else mask
    targets = arguments.targets
    if targets is None and session.structure.outer.training and torch.is_grad_enabled():
        targets = rows_before_text(visual, real)
    predicts, read = predicting_rows(call, real, past, targets)
    held = predicts & visual
    return VisualContext(visual, span, ordinal, spans, expand, mask, grouped, parts, held if held.any() else None, read)


def any_of(ids: Tensor, tokens: Iterable[int]) -> Tensor:
    """Return Bool of the shape of `ids`: which of them are among a few tokens."""
    return reduce(or_, (ids == token for token in tokens))


def group(
    ids: Tensor, visual: Tensor, features: Features, modality_of: dict[int, str]
) -> tuple[list[VisualSpan] | None, int]:
    """Cut the visual places of every batch row by the encoder's pieces. (None, 1) when the two do not match."""
    pieces = {m: list(p) for m, p in features.pieces.items()}
    own = {m: [token for token, kind in modality_of.items() if kind == m] or list(modality_of) for m in pieces}
    ids_by_modality = {m: any_of(ids, tokens) for m, tokens in own.items()}
    totals = {m: int(where.sum()) for m, where in ids_by_modality.items()}
    lengths = {m: sum(piece.length for piece in p) for m, p in pieces.items()}
    if (
        not pieces
        or any(not lengths[m] or totals[m] % lengths[m] for m in pieces)
        or sum(totals.values()) != int(visual.sum())
    ):
        return None, 1
    expands = {totals[m] // lengths[m] for m in pieces}
    expand = expands.pop()
    if expands or not expand or ids.shape[0] % expand:
        return None, 1
    spans: list[VisualSpan] = []
    for start in range(0, ids.shape[0], expand):
        found: list[tuple[Tensor, Piece]] = []
        for modality, where in ids_by_modality.items():
            positions = where[start].nonzero()[:, 0]
            while len(positions):
                if not pieces[modality] or pieces[modality][0].length > len(positions):
                    return None, 1
                piece = pieces[modality].pop(0)
                found.append((positions[: piece.length], piece))
                positions = positions[piece.length :]
        found.sort(key=lambda pair: int(pair[0][0]))
        for batch_row in range(start, start + expand):
            spans += [
                VisualSpan(batch_row, index, piece.kind, item, piece.grid, piece.coords.to(ids.device))
                for item, (index, piece) in enumerate(found)
            ]
    return spans, expand


def parts_of_chunk(ids: Tensor, call: Call, modality_of: dict[int, str], past: int) -> list[ImagePart]:
    """Return what a chunk of the prompt that `generate` was given holds of every image.

    Empty if that cannot be known.
    """
    whole, began = call.request.ids, call.progress.began
    if began is None or whole is None or ids.shape[0] % whole.shape[0]:
        return []
    whole = whole.to(ids.device).repeat_interleave(ids.shape[0] // whole.shape[0], 0)
    if not torch.equal(whole[:, past : past + ids.shape[1]], ids):
        return []
    whole, start = whole[:, began:], past - began
    spans, _ = group(whole, any_of(whole, modality_of), call.features, modality_of)
    found = []
    for span in spans or []:
        inside = ((span.index >= start) & (span.index < start + ids.shape[1])).nonzero()[:, 0]
        if len(inside):
            found.append(ImagePart(span, inside, span.index[inside] - start))
    return found


def runs(visual: Tensor) -> list[VisualSpan]:
    """Return one span per contiguous run of visual ids: the fallback when nothing says how tokens group."""
    spans = []
    for batch_row in range(visual.shape[0]):
        positions = visual[batch_row].nonzero()[:, 0]
        breaks = (positions.diff() != 1).nonzero()[:, 0] + 1
        for item, index in enumerate(positions.tensor_split(breaks.cpu())):
            if len(index):
                coords = torch.full((len(index), 3), -1, device=visual.device)
                spans.append(VisualSpan(batch_row, index, "run", item, None, coords))
    return spans

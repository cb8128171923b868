"""From a selector's answer per sample to the rows that stay: the middleware's half of pruning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pruning import Selection, Selector, VisualTokens, run_ends, run_mean
from pruning.base import AttentionRows, Signal

from .context import Rows, Step
from .ledger import Cut

if TYPE_CHECKING:
    from .session import Session


@dataclass
class Keep:
    """Decision at one boundary, over the physical rows [B, W] that arrive there."""

    content: Tensor  # Bool[B, W]: rows that stay (text always)
    dropped: Tensor | None  # Bool[B, W], only for PosPad
    span: Tensor  # Long[B, W]


def choose(session: Session, step: Step, selector: Selector, rows: Rows) -> Keep | None:
    """Run `selector` on every sample; None when it keeps everything or cannot run in this chunk."""
    context, call = step.context, step.call
    assert context is not None
    if reason := missing_signal(step, selector):
        call.skip(f"{selector.name} at layer {selector.layer}", reason)
        return None
    visual = context.visual.gather(1, rows.log)
    if step.marker is not None:
        visual = visual & ~step.marker.gather(1, rows.log)
    if rows.valid is not None:
        visual = visual & rows.valid
    keep = ~visual
    batch = visual.shape[0]
    requested = [0] * batch
    scores: list[Tensor | None] = [None] * batch
    stats: list[dict[str, Any]] = [{} for _ in range(batch)]
    for first in range(0, batch, context.expand):
        places = visual[first].nonzero()[:, 0]
        if not len(places):
            continue
        tokens = visual_tokens(session, step, selector, rows, first, places)
        result = checked(selector, selector.select(tokens), len(places))
        budget = selector.budget(tokens.total)
        if selector.keep_tokens is not None and selector.keep_tokens > tokens.total:
            call.skip(
                f"{selector.name} at layer {selector.layer}",
                f"keep_tokens={selector.keep_tokens} exceeds the {tokens.total} visual tokens: kept whole",
            )
        for row in range(first, first + context.expand):  # beams of one sample are identical
            keep[row, places[result.keep.to(places.device)]] = True
            requested[row], scores[row], stats[row] = budget, result.scores, dict(result.stats)
    everything = bool((keep | ~visual).all())
    record(step, selector, rows, visual, keep, requested, scores, stats)
    if everything:
        return None
    dropped = visual & ~keep if selector.positions == "pospad" else None
    return Keep(keep, dropped, context.span.gather(1, rows.log))


def missing_signal(step: Step, selector: Selector) -> str | None:
    """Why `selector` cannot run in this chunk, None if it can."""
    for need in selector.needs:
        if isinstance(need, AttentionRows):
            prompt = step.call.prompt_length
            if prompt is not None and step.past + step.q < prompt:
                return "chunked prefill: only the last chunk holds the question, earlier chunks are not cut"
            if need.layer not in step.scores:
                return f"no attention rows of layer {need.layer} in this step"
    return None


def visual_tokens(
    session: Session, step: Step, selector: Selector, rows: Rows, row: int, places: Tensor
) -> VisualTokens:
    """What a selector sees of one sample."""
    context = step.context
    assert context is not None
    logical = rows.log[row, places]
    spans = [span for span in context.spans if span.row == row]
    coords = logical.new_full((step.q, 3), -1)
    for span in spans:
        coords[span.index] = span.coords.to(coords.device)
    signals: dict[Signal, Tensor] = {}
    for need in selector.needs:
        if isinstance(need, AttentionRows):
            signals[need] = step.scores[need.layer][row, :, -need.rows :][
                ..., logical.to(step.scores[need.layer].device)
            ]
    return VisualTokens(
        total=int(context.visual[row].sum()),
        ordinal=context.ordinal[row, logical],
        item=context.span[row, logical],
        coords=coords[logical],
        grids=tuple(span.grid for span in spans),
        signals=signals,
        seed=session.policy.seed,
    )


def checked(selector: Selector, result: Selection, count: int) -> Selection:
    """A third party's selector must not corrupt the sequence."""
    keep = result.keep
    if keep.ndim != 1 or keep.dtype != torch.long or not len(keep) or len(keep) > count:
        raise ValueError(
            f"{selector.name}: keep must be a non-empty Long vector of at most {count} indices, "
            f"got {tuple(keep.shape)} {keep.dtype}"
        )
    if bool((keep.diff() <= 0).any()) or int(keep[0]) < 0 or int(keep[-1]) >= count:
        raise ValueError(f"{selector.name}: keep must be strictly increasing indices in 0..{count - 1}")
    return result


def write_markers(step: Step, hidden: Tensor, keep: Keep, kind: str, rows: Rows) -> tuple[Tensor, Tensor]:
    """PosPad: the last slot of every dropped run carries one marker embedding at its own position.

    FocusUI (arXiv 2601.03928), training-free surrogate. Returns the hidden states and Bool[B, W], the marker slots.
    """
    assert keep.dropped is not None
    assert step.context is not None
    ends = run_ends(keep.dropped, keep.span)
    if kind == "mean":
        means = run_mean(hidden, keep.dropped.to(hidden.device), keep.span.to(hidden.device))
        hidden = torch.where(ends.to(hidden.device)[..., None], means, hidden)
    marker = torch.zeros_like(step.context.visual).scatter(1, rows.log, ends)
    step.marker = marker if step.marker is None else step.marker | marker
    step.call.cuts[-1].markers = marker
    return hidden, ends


def record(
    step: Step,
    selector: Selector,
    rows: Rows,
    visual: Tensor,
    keep: Tensor,
    requested: list[int],
    scores: list[Tensor | None],
    stats: list[dict[str, Any]],
) -> None:
    """Book the cut in logical places."""
    context = step.context
    assert context is not None
    blank = torch.zeros_like(context.visual)
    step.call.cuts.append(
        Cut(
            chunk=len(step.call.contexts) - 1,
            layer=selector.layer,
            method=selector.name,
            keep=blank.scatter(1, rows.log, visual & keep),
            before=blank.scatter(1, rows.log, visual),
            markers=None,
            requested=requested,
            scores=scores,
            stats=stats,
        )
    )

"""From a selector's answer per sample to the rows that stay: the middleware's half of pruning."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vlmopt.pruning import Selection, Selector, VisualTokens, run_ends, run_mean

from ..call import Session, Step
from ..captures import Place, capture_of
from ..context import Rows


@dataclass
class Cut:
    """One selector's work on one prefill chunk."""

    chunk: int  # running number of the pruned prefill inside the call
    layer: int
    method: str
    keep: Tensor  # Bool[B, L] over logical places: visual tokens that stay
    before: Tensor  # Bool[B, L]: visual tokens that were offered
    markers: Tensor | None  # Bool[B, L] places overwritten by PosPad markers
    requested: list[int]  # per row
    scores: list[Tensor | None]  # per row, fp32 over the offered tokens
    stats: list[dict[str, Any]]
    origin: list[Tensor | None]  # per row, Long over the offered tokens: the one into which each was merged, or -1
    written: Tensor | None = None  # Bool[B, L] places that carry merged tokens


class Cuts(list[Cut]):
    """State of a page: every cut of the prompt, in order."""


@dataclass(eq=False)
class Overwritten:
    """State of a step: Bool[B, L] logical places whose content is no longer what the model put there."""

    marker: Tensor | None = None  # overwritten by PosPad markers
    merged: Tensor | None = None  # carry merged tokens
    left: Tensor | None = None  # the next cut at this boundary has to drop them


@dataclass
class Keep:
    """Decision at one boundary, over the physical rows [B, W] that arrive there."""

    content: Tensor  # Bool[B, W]: rows that stay (text always)
    dropped: Tensor  # Bool[B, W]: visual rows that leave, with those that the cut before left to this one
    span: Tensor  # Long[B, W]
    written: list[tuple[int, Tensor, Tensor]]  # (row of the batch, physical places Long[e], embeds [e, d])


@dataclass
class Answers:
    """What the selector said of every row of the batch, for the ledger."""

    requested: list[int]
    scores: list[Tensor | None]
    stats: list[dict[str, Any]]
    origin: list[Tensor | None]
    written: list[tuple[int, Tensor, Tensor]] = field(default_factory=list)

    @classmethod
    def blank(cls, batch: int) -> Answers:
        return cls([0] * batch, [None] * batch, [{} for _ in range(batch)], [None] * batch)


def choose(session: Session, step: Step, selector: Selector, rows: Rows, hidden: Tensor) -> Keep | None:
    """Run `selector` on every sample; None when it keeps everything or cannot run in this chunk."""
    context, call, overwritten = step.context, step.call, step.slot(Overwritten)
    assert context is not None
    if reason := missing(step, selector):
        call.skip(f"{selector.name} at layer {selector.layer}", reason)
        if overwritten.left is None:
            return None
        dropped = overwritten.left.gather(1, rows.log)
        return Keep(~dropped, dropped, context.span.gather(1, rows.log), [])
    visual = context.visual.gather(1, rows.log)
    if overwritten.marker is not None:
        visual = visual & ~overwritten.marker.gather(1, rows.log)
    if rows.valid is not None:
        visual = visual & rows.valid
    arrived = visual
    if overwritten.left is not None:
        visual = visual & ~overwritten.left.gather(1, rows.log)
    keep, answers = ~arrived, Answers.blank(visual.shape[0])
    for first in range(0, visual.shape[0], context.expand):
        places = visual[first].nonzero()[:, 0]
        if not len(places):
            continue
        at = Place(session, step, first, places, rows.log[first, places], hidden)
        tokens = visual_tokens(at, selector)
        result = checked(selector, selector.select(tokens), tokens)
        budget = selector.budget(tokens.total)
        if tokens.held is not None and int(tokens.held.sum()) > budget:
            call.skip(
                f"budget of {selector.name} at layer {selector.layer}",
                f"{int(tokens.held.sum())} visual tokens predict labels and stay, more than the {budget} asked for",
            )
        if selector.keep_tokens is not None and selector.keep_tokens > tokens.total:
            call.skip(
                f"{selector.name} at layer {selector.layer}",
                f"keep_tokens={selector.keep_tokens} exceeds the {tokens.total} visual tokens: kept whole",
            )
        for row in range(first, first + context.expand):  # beams of one sample are identical
            keep[row, places[result.keep.to(places.device)]] = True
            answers.requested[row], answers.scores[row], answers.stats[row] = budget, result.scores, dict(result.stats)
            if result.written is not None:
                answers.origin[row] = result.written.origin
                answers.written.append((row, places[result.written.slots.to(places.device)], result.written.embeds))
    record(step, selector, rows, visual, keep, answers)
    dropped = arrived & ~keep
    if not (answers.written or bool(dropped.any())):
        return None
    return Keep(keep, dropped, context.span.gather(1, rows.log), answers.written)


def missing(step: Step, selector: Selector) -> str | None:
    """Why a selector cannot have its signals in this chunk, None if it can."""
    captures = {need: capture_of(need) for need in selector.captures}
    end, of_question = step.call.request.length, any(capture.of_question for capture in captures.values())
    if (selector.query_aware or of_question) and end is not None and step.past + step.q < end:
        return "chunked prefill: only the last chunk holds the question, earlier chunks are not cut"
    reasons = (capture.missing(step, need) for need, capture in captures.items())
    return next((reason for reason in reasons if reason is not None), None)


def visual_tokens(at: Place, selector: Selector) -> VisualTokens:
    """What a selector sees of one sample."""
    context, row = at.step.context, at.row
    assert context is not None
    spans = [span for span in context.spans if span.row == row]
    coords = at.logical.new_full((at.step.q, 3), -1)
    for span in spans:
        coords[span.index] = span.coords.to(coords.device)
    return VisualTokens(
        total=int(context.visual[row].sum()),
        ordinal=context.ordinal[row, at.logical],
        item=context.span[row, at.logical],
        coords=coords[at.logical],
        grids=tuple(span.grid for span in spans),
        signals={need: capture_of(need).read(need, at) for need in selector.captures},
        seed=at.session.policy.seed,
        lengths=tuple(len(span.index) for span in spans),
        held=None if context.held is None else context.held[row, at.logical],
    )


def checked(selector: Selector, result: Selection, tokens: VisualTokens) -> Selection:
    """A third party's selector must not corrupt the sequence, nor drop what predicts."""
    keep, count = result.keep, len(tokens)
    if keep.ndim != 1 or keep.dtype != torch.long or not len(keep) or len(keep) > count:
        raise ValueError(
            f"{selector.name}: keep must be a non-empty Long vector of at most {count} indices, "
            f"got {tuple(keep.shape)} {keep.dtype}"
        )
    if bool((keep.diff() <= 0).any()) or int(keep[0]) < 0 or int(keep[-1]) >= count:
        raise ValueError(f"{selector.name}: keep must be strictly increasing indices in 0..{count - 1}")
    written = result.written
    if written is not None and (
        len(written.slots) != len(written.embeds) or not bool(torch.isin(written.slots, keep).all())
    ):
        raise ValueError(f"{selector.name}: every written slot must be kept and have one embedding")
    if tokens.held is not None:
        held = tokens.held.nonzero()[:, 0].to(keep.device)
        if not bool(torch.isin(held, keep).all()) or (
            written is not None and bool(torch.isin(written.slots, held).any())
        ):
            raise ValueError(
                f"{selector.name}: tokens {held.tolist()} predict what follows, so they must be kept as they are; "
                "override pick, not select, or keep what tokens.held marks"
            )
    return result


def write_merged(step: Step, hidden: Tensor, keep: Keep, rows: Rows) -> Tensor:
    """Merged tokens take over the slots they were given; DeepStack adds nothing to them any more."""
    assert step.context is not None
    hidden = hidden.clone()
    here = torch.zeros_like(keep.content)
    for row, places, embeds in keep.written:
        hidden[row, places.to(hidden.device)] = embeds.to(hidden)
        here[row, places] = True
    where = torch.zeros_like(step.context.visual).scatter(1, rows.log, here)
    overwritten = step.slot(Overwritten)
    overwritten.merged = where if overwritten.merged is None else overwritten.merged | where
    step.call.page.slot(Cuts)[-1].written = where
    return hidden


def write_markers(
    session: Session, step: Step, hidden: Tensor, keep: Keep, selector: Selector, rows: Rows
) -> tuple[Tensor, Tensor]:
    """PosPad: the last slot of every dropped run carries one marker embedding at its own position.

    FocusUI (arXiv 2601.03928), whose trained embedding or a training-free surrogate. Returns the hidden states and
    Bool[B, W], the marker slots.
    """
    assert step.context is not None
    ends = run_ends(keep.dropped, keep.span)
    if selector.marker == "trained":
        marker = session.trained[str(selector.marker_source)].marker
        assert marker is not None
        hidden = torch.where(ends.to(hidden.device)[..., None], marker.to(hidden), hidden)
    elif selector.marker == "mean":
        means = run_mean(hidden, keep.dropped.to(hidden.device), keep.span.to(hidden.device))
        hidden = torch.where(ends.to(hidden.device)[..., None], means, hidden)
    where = torch.zeros_like(step.context.visual).scatter(1, rows.log, ends)
    overwritten = step.slot(Overwritten)
    overwritten.marker = where if overwritten.marker is None else overwritten.marker | where
    step.call.page.slot(Cuts)[-1].markers = where
    return hidden, ends


def record(step: Step, selector: Selector, rows: Rows, visual: Tensor, keep: Tensor, answers: Answers) -> None:
    """Book the cut in logical places."""
    context = step.context
    assert context is not None
    blank = torch.zeros_like(context.visual)
    step.call.page.slot(Cuts).append(
        Cut(
            chunk=len(step.call.page.contexts) - 1,
            layer=selector.layer,
            method=selector.name,
            keep=blank.scatter(1, rows.log, visual & keep),
            before=blank.scatter(1, rows.log, visual),
            markers=None,
            requested=answers.requested,
            scores=answers.scores,
            stats=answers.stats,
            origin=answers.origin,
        )
    )

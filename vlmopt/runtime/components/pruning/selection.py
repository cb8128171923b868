"""Turn a selector's answer per sample into the rows that stay: the runtime's half of pruning."""

from __future__ import annotations

import torch
from torch import Tensor

from vlmopt.pruning import Selection, Selector, VisualTokens

from ...call import PromptStep, Session
from ...captures import capture_of
from ...context import Rows, VisualContext
from ...place import Place
from .record import Answer, Choice, Overwritten, Written


def choose(
    session: Session, step: PromptStep, context: VisualContext, selector: Selector, rows: Rows, hidden: Tensor
) -> Choice:
    """Run `selector` on every sample; where it cannot run in this chunk, all stays but what the cut before left."""
    call, overwritten, span = step.call, step.slot(Overwritten), context.span.gather(1, rows.log)
    left = None if overwritten.left is None else overwritten.left.gather(1, rows.log)
    if reason := missing(step, context, selector):
        call.skip(f"{selector.name} at layer {selector.layer}", reason)
        dropped = torch.zeros_like(rows.log, dtype=torch.bool) if left is None else left
        return Choice(~dropped, dropped, span, None, [], [])
    arrived = context.visual.gather(1, rows.log)
    if overwritten.marker is not None:
        arrived = arrived & ~overwritten.marker.gather(1, rows.log)
    if rows.valid is not None:
        arrived = arrived & rows.valid
    offered = arrived if left is None else arrived & ~left
    keep, answers, written = ~arrived, [Answer()] * step.batch, list[Written]()
    for first in range(0, step.batch, context.expand):
        physical = offered[first].nonzero()[:, 0]
        if not len(physical):
            continue
        at = Place(session, step, context, first, physical, rows.log[first, physical], rows, hidden)
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
        origin = None if result.written is None else result.written.origin
        for batch_row in range(first, first + context.expand):  # beams of one sample are identical
            keep[batch_row, physical[result.keep.to(physical.device)]] = True
            answers[batch_row] = Answer(budget, result.scores, dict(result.stats), origin)
            if result.written is not None:
                slots = physical[result.written.slots.to(physical.device)]
                written.append(Written(batch_row, slots, result.written.embeds))
    return Choice(keep, arrived & ~keep, span, offered, answers, written)


def missing(step: PromptStep, context: VisualContext, selector: Selector) -> str | None:
    """Return why a selector cannot have its signals in this chunk, None if it can."""
    captures = {need: capture_of(need) for need in selector.captures}
    end, of_question = step.call.request.length, any(capture.of_question for capture in captures.values())
    if (selector.query_aware or of_question) and end is not None and step.past + step.q < end:
        return "chunked prefill: only the last chunk holds the question, earlier chunks are not cut"
    reasons = (capture.missing(step, context, need) for need, capture in captures.items())
    return next((reason for reason in reasons if reason is not None), None)


def visual_tokens(at: Place, selector: Selector) -> VisualTokens:
    """Return what a selector sees of one sample."""
    context, batch_row = at.context, at.batch_row
    spans = [span for span in context.spans if span.batch_row == batch_row]
    lengths = tuple(len(span.index) for span in spans)
    coords = at.logical.new_full((at.step.q, 3), -1)
    for span in spans:
        coords[span.index] = span.coords.to(coords.device)
    return VisualTokens(
        total=sum(lengths),
        ordinal=context.ordinal[batch_row, at.logical],
        item=context.span[batch_row, at.logical],
        coords=coords[at.logical],
        grids=tuple(span.grid for span in spans),
        signals={need: capture_of(need).read(need, at) for need in selector.captures},
        seed=at.session.policy.seed,
        lengths=lengths,
        held=None if context.held is None else context.held[batch_row, at.logical],
    )


def checked(selector: Selector, result: Selection, tokens: VisualTokens) -> Selection:
    """Check a selection, and return it.

    A third party's selector must not corrupt the sequence, nor drop what predicts.
    """
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

"""Overwrite what places carry from a cut on: merged tokens, and markers of runs that were dropped."""

from __future__ import annotations

import torch
from torch import Tensor

from vlmopt.pruning import Selector, run_ends, run_mean

from ....scorers import Trained
from ...call import PromptStep, Session
from ...context import Rows, VisualContext
from ...points import LayerInput
from .record import Choice, Overwritten, at_places


def write_merged(step: PromptStep, context: VisualContext, at: LayerInput, choice: Choice, rows: Rows) -> Tensor:
    """Let merged tokens take over the places they were given; return Bool[B, L], to which DeepStack adds nothing."""
    at.hidden = at.hidden.clone()
    here = torch.zeros_like(choice.content)
    for one in choice.written:
        at.hidden[one.batch_row, one.places.to(at.hidden.device)] = one.embeds.to(at.hidden)
        here[one.batch_row, one.places] = True
    overwritten, where = step.slot(Overwritten), at_places(context, rows, here)
    overwritten.merged = where if overwritten.merged is None else overwritten.merged | where
    return where


def write_markers(
    session: Session,
    step: PromptStep,
    context: VisualContext,
    at: LayerInput,
    choice: Choice,
    selector: Selector,
    rows: Rows,
) -> Tensor:
    """Put one marker embedding into the last place of every dropped run, at its own position; return Bool[B, W].

    PosPad of FocusUI (arXiv 2601.03928), whose trained embedding or a training-free surrogate.
    """
    hidden = at.hidden
    ends = run_ends(choice.dropped, choice.span)
    if selector.marker == "trained":
        marker = session.slot(Trained).markers[str(selector.marker_source)]
        at.hidden = torch.where(ends.to(hidden.device)[..., None], marker.to(hidden), hidden)
    elif selector.marker == "mean":
        means = run_mean(hidden, choice.dropped.to(hidden.device), choice.span.to(hidden.device))
        at.hidden = torch.where(ends.to(hidden.device)[..., None], means, hidden)
    overwritten, where = step.slot(Overwritten), at_places(context, rows, ends)
    overwritten.marker = where if overwritten.marker is None else overwritten.marker | where
    return ends

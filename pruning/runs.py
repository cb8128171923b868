"""Runs of dropped tokens, and the one slot that stands for each (PosPad).

FocusUI: Efficient UI Grounding via Position-Preserving Visual Token Selection (arXiv 2601.03928): the last slot of
every dropped run stays, at its own position, with a marker embedding. The paper learns that embedding; here it comes
from the run.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad


def run_ends(dropped: Tensor, span: Tensor) -> Tensor:
    """Return the last slot of each maximal run of neighbouring dropped tokens of one span.

    Args:
        dropped: Bool[B, L]. span: Long[B, L], equal numbers within one image, tile or frame.

    Returns:
        Bool[B, L].
    """
    goes_on = dropped[:, 1:] & (span[:, 1:] == span[:, :-1])
    return dropped & ~pad(goes_on, (0, 1))


def run_mean(hidden: Tensor, dropped: Tensor, span: Tensor) -> Tensor:
    """Return the mean of every dropped run, at the run's last slot; zero elsewhere.

    For the marker "last" nothing needs computing: `hidden` at the run's end already is the marker.

    Args:
        hidden: [B, L, d]. dropped, span: as in `run_ends`.

    Returns:
        [B, L, d] in the dtype of `hidden`, accumulated in fp32, a run independent of the rest of the batch.
    """
    ends = run_ends(dropped, span)
    out = torch.zeros_like(hidden)
    last = ends[dropped].nonzero()[:, 0]  # end of each run among the dropped tokens, which lie run after run
    if len(last):
        lengths = last.diff(prepend=last.new_tensor([-1]))
        # Fixed order of summation, unlike index_add on a GPU.
        means = torch.segment_reduce(hidden[dropped].float(), "mean", lengths=lengths, axis=0)
        out[ends] = means.to(hidden.dtype)
    return out

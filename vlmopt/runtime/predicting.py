"""Find rows that somebody predicts from: the last real row of every prompt, and rows whose next token is a label.

Whatever a selector says, none of them leaves. A prompt may end in an image.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from .call import Call, Forward


def predicting_rows(call: Call, real: Tensor, past: int, targets: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the rows of a chunk that have to stay, Bool[B, L] each: those that predict, and padding `generate` reads.

    `generate` takes the logits of the prompt's last column, which is padding where a prompt is padded on the right.
    Rows behind the prompt (generated ones, candidates of assisted decoding) are text.

    Args:
        real: Bool[B, L], False on padding. past: logical length before the chunk.
        targets: Bool[B, L], rows whose next token is a label; None without labels.
    """
    place = torch.arange(past, past + real.shape[1], device=real.device)
    end = call.request.length
    end = past + real.shape[1] if end is None or end <= past else end
    last = place == last_real(call, real & (place < end), past, end)[:, None]
    column = torch.zeros_like(real) if isinstance(call, Forward) else ~real & (place == end - 1)
    return last if targets is None else last | targets.to(last.device), column


def rows_before_text(visual: Tensor, real: Tensor) -> Tensor:
    """Return Bool[B, L]: rows whose next token is text. A loss outside the model (label smoothing) may count them."""
    return pad((real & ~visual)[:, 1:], (0, 1))


def last_real(call: Call, real: Tensor, past: int, end: int) -> Tensor:
    """Return Long[B]: the logical index of every sample's last real row; -1 where its chunk is not known."""
    mask = call.prompt_mask
    if mask is None or mask.shape[1] != end or real.shape[0] % len(mask):
        if past + real.shape[1] < end:
            return torch.full_like(real[:, 0], -1, dtype=torch.long)
        mask = pad(real, (past, 0))
    mask = mask.to(real.device).bool()
    last = torch.where(mask, torch.arange(mask.shape[1], device=mask.device), -1).amax(1)
    return last.repeat_interleave(real.shape[0] // len(mask))

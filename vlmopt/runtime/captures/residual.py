"""Capture the residual stream that enters a decoder layer, of the tokens of a prompt."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vlmopt.attention_fix import Residual

from ..call import PromptStep
from ..capture import Capture
from ..compat import every_row
from ..padding import prompt_places
from ..points import LayerInput


@dataclass(frozen=True, eq=False)
class Stream:
    """What enters one layer, behind its cuts."""

    hidden: Tensor  # [B, W, d]
    logical: Tensor  # Long[B, W] offsets inside the chunk
    real: Tensor  # Bool[B, W]: tokens of the prompt, neither padding nor fillers

    def at_places(self, marked: Tensor, length: int) -> Tensor:
        """Return Bool[B, length] over logical indices from Bool[B, W]; False where no token of the prompt is."""
        blank = torch.zeros(len(marked), length, dtype=torch.bool, device=marked.device)
        return blank.scatter_(1, self.logical, marked & self.real)


class ResidualCapture(Capture[Residual]):
    """Capture `Residual`; a component reads it where it acts at a layer."""

    def open_step(self, step: PromptStep, need: Residual) -> None:
        """Let the decoder run all rows in all layers."""
        every_row(step.given)

    def stream(self, step: PromptStep, stage: int, at: LayerInput) -> Stream:
        """Return what enters a layer of `stage`."""
        hidden, rows = at.hidden, step.current(stage)
        logical = rows.log[:, -hidden.shape[1] :].to(hidden.device)
        real = prompt_places(step, hidden.device).gather(1, logical)
        if rows.valid is not None:
            real = real & rows.valid[:, -hidden.shape[1] :].to(hidden.device)
        return Stream(hidden, logical, real)


ENTERING = ResidualCapture()

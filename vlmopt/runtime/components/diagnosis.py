"""Let diagnoses listen: the residual stream behind every decoder layer, at logical indices, of whole prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from vlmopt.attention_fix import Diagnosis

from ..call import PromptStep, Session, Step
from ..compat import every_row
from ..component import Component, LayerPart
from ..hooks.layer import entry_of
from ..masks import scatter_rows
from ..padding import prompt_places
from ..points import LayerInput
from .corrections.layer import record_of


class Diagnoses(Component):
    """Listen where the stream enters a layer, as later layers get it, and behind the last one."""

    def __init__(self, session: Session, diagnoses: Sequence[Diagnosis]) -> None:
        super().__init__(session)
        self.diagnoses = diagnoses

    @classmethod
    def of(cls, session: Session) -> Diagnoses | None:
        diagnoses = [c for c in session.policy.corrections if isinstance(c, Diagnosis)]
        return cls(session, diagnoses) if diagnoses else None

    def open_step(self, step: Step, cache: Any) -> None:
        """Ask for all rows of every layer that is heard."""
        every_row(step.given)

    def install(self) -> None:
        session, layers = self.session, self.session.structure.layers
        for diagnosis in self.diagnoses:
            for layer in range(1, len(layers)):
                entry_of(session, layer).parts.append(Ear(session, layer, diagnosis))
            session.hook(layers[-1].register_forward_hook(LastEar(session, len(layers), diagnosis)))


class Ear(LayerPart):
    """Listen before a decoder layer, or behind the last; `place` is the number of layers before it."""

    def __init__(self, session: Session, place: int, diagnosis: Diagnosis) -> None:
        self.session, self.place, self.diagnosis = session, place, diagnosis
        self.stage = session.stages.of(min(place, session.stages.depth - 1))

    def at_layer(self, step: PromptStep, at: LayerInput) -> None:
        """Hear the stream behind the cuts."""
        self.hear(step, at.hidden)

    def hear(self, step: PromptStep, hidden: Tensor) -> None:
        """Take in the stream [B, W, D] of a prompt."""
        if step.call.ledger.prompt is not None:
            return  # the prompt once more: there is no cache
        record = record_of(step.call, self.diagnosis, 0)
        if self.place == 1:
            record.listening = None if self.partial(step) else self.diagnosis.listen(prompt_places(step, step.device))
        if record.listening is not None:  # layers may lie on several devices
            record.listening.add(self.whole(step, hidden.detach().to(step.device)))

    def partial(self, step: Step) -> bool:
        """Return whether this pass holds a part of a prompt only; the reason then goes into the report."""
        if part := bool(step.past) or step.q < (step.call.request.length or 0):
            step.call.skip(self.diagnosis.name, "the prompt came in parts, or over a cache that was filled before")
        return part

    def whole(self, step: Step, hidden: Tensor) -> Tensor:
        """Return [B, q, D] at logical indices, 0 where a token was dropped."""
        rows = step.current(self.stage)
        if rows.valid is None and hidden.shape[1] == step.q:
            return hidden
        valid = None if rows.valid is None else rows.valid[:, -hidden.shape[1] :]
        return scatter_rows(hidden, rows.log[:, -hidden.shape[1] :].to(hidden.device), valid, step.q)


class LastEar(Ear):
    """Forward hook of the last decoder layer."""

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        step = self.session.running_step()
        if isinstance(step, PromptStep):
            self.hear(step, output[0] if isinstance(output, tuple) else output)

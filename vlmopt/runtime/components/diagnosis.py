"""Lets diagnoses listen: the residual stream behind every decoder layer, at logical places, of whole prompts."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from vlmopt.attention_fix import Diagnosis

from ..call import Component, Session, Step
from ..compat import every_row
from ..hooks.decoder import scatter_rows
from ..places import decoding, prompt_places
from .layer_corrections import record_of


class Diagnoses(Component):
    """Listens where the stream enters a layer, as later layers get it, and behind the last one."""

    @staticmethod
    def wanted(session: Session) -> bool:
        return any(isinstance(c, Diagnosis) for c in session.policy.corrections)

    def open_step(self, step: Step, cache: Any) -> None:
        """What is heard of a layer is heard of all its rows."""
        every_row(step.given)

    def install(self) -> None:
        session, layers = self.session, self.session.structure.layers
        for diagnosis in (c for c in session.policy.corrections if isinstance(c, Diagnosis)):
            for layer in range(1, len(layers)):
                before = Ear(session, layer, diagnosis)
                session.hook(layers[layer].register_forward_pre_hook(before, with_kwargs=True))
            behind = Ear(session, len(layers), diagnosis)
            session.hook(layers[-1].register_forward_hook(behind, with_kwargs=True))


class Ear:
    """Forward pre-hook of a decoder layer, or forward hook of the last; `place` is the number of layers before it."""

    def __init__(self, session: Session, place: int, diagnosis: Diagnosis) -> None:
        self.session, self.place, self.diagnosis = session, place, diagnosis
        self.stage = session.stage_of[min(place, len(session.stage_of) - 1)]

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any = None) -> None:
        step = self.session.running_step()
        if step is None or step.side is not None or decoding(step):
            return
        if step.call.prompt is not None:
            return  # the prompt once more: there is no cache
        if output is not None:
            hidden = output[0] if isinstance(output, tuple) else output
        else:
            hidden = args[0] if args else kwargs["hidden_states"]
        record = record_of(step.call, self.diagnosis, 0)
        if self.place == 1:
            record.listening = None if self.partial(step) else self.diagnosis.listen(prompt_places(step, step.device))
        if record.listening is not None:  # layers may lie on several devices
            record.listening.add(self.whole(step, hidden.detach().to(step.device)))

    def partial(self, step: Step) -> bool:
        """Whether this pass holds a part of a prompt only; the reason then goes into the report."""
        if part := bool(step.past) or step.q < (step.call.request.length or 0):
            step.call.skip(self.diagnosis.name, "the prompt came in parts, or over a cache that was filled before")
        return part

    def whole(self, step: Step, hidden: Tensor) -> Tensor:
        """[B, q, D] at logical places, 0 where a token was dropped."""
        rows = step.current(self.stage)
        if rows.valid is None and hidden.shape[1] == step.q:
            return hidden
        valid = None if rows.valid is None else rows.valid[:, -hidden.shape[1] :]
        return scatter_rows(hidden, rows.log[:, -hidden.shape[1] :].to(hidden.device), valid, step.q)

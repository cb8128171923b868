"""Hand the head what early layers made of the newest row, together with the last one: the head is read once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ...decoding import EarlyExit
from ...policy import Policy
from ..call import Generation, Session, Step
from ..component import Component
from ..hooks.head import ASKED
from ..structure import ModelStructure
from .decoding import Told
from .marks import Marks

NORMS = ("norm", "final_layernorm", "final_layer_norm", "embedding_norm")  # of the decoder, behind its last layer


@dataclass(eq=False)
class EarlyRows:
    """State of a call: the newest row behind early layers, on its way to the head."""

    rows: dict[int, Tensor] = field(default_factory=dict)  # layer -> [B, 1, D]
    appended: int = 0  # rows that the head was handed behind its own


class EarlyLayers(Component):
    """Read early layers by the head's own product, and take their logits off what the model returns."""

    def __init__(self, session: Session, method: EarlyExit) -> None:
        super().__init__(session)
        self.method = method

    @staticmethod
    def check(model: Any, structure: ModelStructure, policy: Policy) -> None:
        for method in early(policy):
            method.at(len(structure.layers))
            kind = type(model).__name__
            if hasattr(structure.config, "altup_num_inputs"):
                raise ValueError(f"{method.label}: layers of {kind} hand on several rows of each token, not one")
            if method.norm and norm_of(structure) is None:
                raise ValueError(f"{method.label}: {kind} has no final norm that is known; give norm=False")

    @classmethod
    def of(cls, session: Session) -> EarlyLayers | None:
        methods = early(session.policy)
        return cls(session, methods[0]) if methods else None

    def install(self) -> None:
        """Listen to the early layers and at the head."""
        session, layers = self.session, self.session.structure.layers
        for layer in self.method.at(len(layers)):
            session.hook(layers[layer].register_forward_hook(TakeRow(session, layer)))
        head = session.model.get_output_embeddings()
        session.hook(head.register_forward_pre_hook(AppendRows(session, self.method.norm)))

    def open_step(self, step: Step, cache: Any) -> None:
        """Forget the row before."""
        step.call.put(EarlyRows())

    def behind_head(self, call: Generation, head: Callable[..., Any], given: Mapping[str, Any], out: Any) -> None:
        """Split the logits of early layers from the model's own.

        Raises:
            RuntimeError: the head was not handed the rows.
        """
        marks, early_rows, told = call.find(Marks), call.slot(EarlyRows), call.slot(Told)
        if marks is None or not marks.has_image:
            return
        if not early_rows.appended:
            raise RuntimeError(f"{type(self.session.model).__name__} made logits without calling its output embeddings")
        own = out.logits.shape[1] - early_rows.appended
        told.early, out.logits = out.logits[:, own:].float(), out.logits[:, :own]
        call.drop(EarlyRows)


class TakeRow:
    """Forward hook of an early layer."""

    def __init__(self, session: Session, layer: int) -> None:
        self.session, self.layer = session, layer

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        step = self.session.running_step()
        if step is not None and isinstance(step.call, Generation):
            hidden: Tensor = output[0] if isinstance(output, tuple) else output
            step.call.slot(EarlyRows).rows[self.layer] = hidden[:, -1:]


class AppendRows:
    """Forward pre-hook of the head: [B, q, D] becomes [B, q + E, D]."""

    def __init__(self, session: Session, norm: bool) -> None:
        self.session, self.norm = session, norm

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> Any:
        asked = ASKED.get()
        call = None if asked is None else asked.call  # not that which runs: a pass of guidance has one of its own
        if not isinstance(call, Generation) or call.session is not self.session:
            return None
        known, marks = call.find(EarlyRows), call.find(Marks)
        if known is None or marks is None or not marks.has_image or args[0].ndim != 3:
            return None
        rows = torch.cat([known.rows[layer].to(args[0].device) for layer in sorted(known.rows)], 1)
        norm = norm_of(self.session.structure) if self.norm else None
        known.rows, known.appended = {}, rows.shape[1]
        return (torch.cat([args[0], rows if norm is None else norm(rows)], 1), *args[1:])


def early(policy: Policy) -> list[EarlyExit]:
    return [step for step in policy.steps if isinstance(step, EarlyExit)]


def norm_of(structure: ModelStructure) -> nn.Module | None:
    """Return the norm behind the last layer."""
    return next((norm for name in NORMS if (norm := getattr(structure.decoder, name, None)) is not None), None)

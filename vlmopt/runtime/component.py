"""What a feature of the runtime does: when a model is optimized, in every pass, and inside the decoder.

Inside, parts act in the order in which they were put in place: readers of signals, then components in theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from vlmopt.core import Signal

from ..policy import Policy
from .arguments import EncodingPlan, Request
from .call import Call, Generation, PromptStep, Session, Step
from .points import AttentionCall, LayerInput
from .structure import ModelStructure


@dataclass(frozen=True)
class Account:
    """What a component did in one call, for the report."""

    entries: dict[str, Any] = field(default_factory=dict)  # fields of the report by name, JSON-ready
    lines: list[str] = field(default_factory=list)  # of its table
    skipped: dict[str, str] = field(default_factory=dict)  # what -> why


class Component:
    """Base of features: the hooks of one in a session, and its part in every pass."""

    on_single_rows: ClassVar[bool] = True  # whether it acts on generated tokens; where nobody does, these compile whole

    def __init__(self, session: Session) -> None:
        self.session = session

    @staticmethod
    def check(model: Any, structure: ModelStructure, policy: Policy) -> None:
        """Raise `ValueError` where this model cannot have what a policy asks for; called before anything is changed."""

    @classmethod
    def of(cls, session: Session) -> Component | None:
        """Return what a session's policy asks for, None where that is nothing; no hook is in place yet."""
        raise NotImplementedError

    def signals(self) -> set[Signal]:
        """Return what has to be captured for it."""
        return set()

    def install(self) -> None:
        """Put its hooks in place, behind those of the components before it."""

    def open_call(self, request: Request, arguments: dict[str, Any]) -> None:
        """Begin a `generate`; its arguments may be changed in place."""

    def open_encoding(self, call: Call) -> None:
        """Prepare for a forward that is about to encode images.

        One that encodes by itself; in older releases that is every step without a cache.
        """

    def change_pixels(self, call: Call, modality: str, bound: Mapping[str, Any]) -> dict[str, Any]:
        """Look at the arguments of a feature function; return those that are to be others."""
        return {}

    def plan_encoding(self, modality: str, bound: dict[str, Any]) -> EncodingPlan | None:
        """Return what is to run in the place of a feature function called with these arguments; None for itself."""
        return None

    def open_step(self, step: Step, cache: Any) -> None:
        """Begin a decoder pass."""

    def close_step(self, step: Step, cache: Any) -> None:
        """End a decoder pass."""

    def behind_head(self, call: Generation, head: Callable[..., Any], given: Mapping[str, Any], out: Any) -> None:
        """Act on the logits of one pass of a `generate`, which may be changed in place.

        Args:
            head: the model with the head, as it was called with the arguments `given`. out: what it returned.
        """

    def close_call(self, call: Call) -> None:
        """Leave in the call what a report needs, and nothing that is large."""

    def report(self, call: Call) -> Account:
        """Report what it did in a call that is over, from what it left there."""
        return Account()


class Components(list[Component]):
    """State of a session: what its policy asks for, in order."""


class LayerPart:
    """Base of what acts where hidden states enter a decoder layer."""

    def at_layer(self, step: PromptStep, at: LayerInput) -> None:
        """Look at the input of a prompt's rows, or change it."""
        raise NotImplementedError


class AttentionPart:
    """Base of what acts in the attention function of a decoder layer."""

    edits_text = False  # whether it may change what rows of text attend to
    least_keys = 0  # over fewer, it leaves the attention of generated tokens to the kernel

    def compute(self, step: Step, at: AttentionCall) -> Tensor | None:
        """Return the attention output [B, q, H, D] in the kernel's place; None where the kernel has to run."""
        return None

    def behind(self, step: Step, at: AttentionCall, out: Tensor) -> Tensor:
        """Return the output [B, q, H, D], of the kernel or of what stood in, as the model goes on with it."""
        return out

"""How one kind of signal is captured: whether a model can give it, where it is listened for, what a method reads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

from vlmopt.pruning import Signal

from ..families import Family, families
from .call import Call, PromptStep, Session
from .context import VisualContext
from .fitting import Fitting
from .place import Place
from .points import LayerInput
from .structure import ModelStructure

Need = TypeVar("Need", bound=Signal)


class Capture(Generic[Need]):
    """Base of captures, one per kind of signal; has no state of its own."""

    of_question = False  # whether it reads the question, which only the last chunk of a prompt holds

    def check(self, model: Any, structure: ModelStructure, method: Any, need: Need) -> None:
        """Raise `ValueError` where this model cannot give it to a method; called before anything is changed."""

    def install(self, session: Session, need: Need) -> None:
        """Listen for it."""

    def open_step(self, step: PromptStep, need: Need) -> None:
        """Prepare: a prompt or a chunk of it is about to run in the decoder."""

    def take(self, call: Call, modality: str, function: Callable[..., Any], bound: dict[str, Any]) -> None:
        """Take pixels: a feature function is about to run on those among its arguments."""

    def before_cut(
        self, step: PromptStep, context: VisualContext, need: Need, at: LayerInput, fitting: Fitting
    ) -> None:
        """Read before a layer's input is cut for a method that asks; `fitting` is that of the rows so far."""

    def behind_cut(self, step: PromptStep, need: Need) -> None:
        """Let go: the cut that it was taken for is made."""

    def missing(self, step: PromptStep, context: VisualContext, need: Need) -> str | None:
        """Return why this chunk, with visual tokens, does not have it; None if it does."""
        return None

    def read(self, need: Need, at: Place) -> Any:
        """Return its value for the current visual tokens of one sample."""
        raise NotImplementedError


def described(able: Callable[[Family], bool]) -> str:
    """Name the families that can do something, for error messages."""
    return ", ".join(sorted(family.name for family in families().values() if able(family)))

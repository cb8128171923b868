"""The contract of a decoding step: what it is shown beside the logits, and how it changes them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from vlmopt.attention_fix import contrast
from vlmopt.attention_fix.layers import check_layers, layer_numbers
from vlmopt.core import Configured, Registry, setting, validate


@dataclass(frozen=True, kw_only=True)
class Decoding(Configured, ABC):
    """Base of what changes the logits of every step, behind the processors of a call and before its warpers.

    Samples that have shown no image stay as they are, bit for bit.

    Raises:
        TypeError, ValueError: a setting of the wrong type or out of range.
    """

    name: ClassVar[str] = ""  # set by `register`
    reads: ClassVar[str] = "logits"  # what the change depends on, in words, for tables
    group: ClassVar[str] = ""  # a policy may hold one step of a group

    def __post_init__(self) -> None:
        validate(self, self.label)

    @property
    def label(self) -> str:
        """The name for messages."""
        return self.name or type(self).__name__

    @property
    def is_identity(self) -> bool:
        """True if these settings change nothing."""
        return False

    def check_vocabulary(self, tokens: int) -> None:
        """Raise `ValueError` for a model of so many tokens on which this cannot work."""

    @abstractmethod
    def step(self, scores: Tensor, beside: Tensor | None) -> Tensor:
        """Return the changed logits fp32 [B, V].

        Args:
            scores: fp32 [B, V], -inf for ids that are excluded already.
            beside: what the base of its kind says: logits of a second stream, of early layers, or None.
        """


@dataclass(frozen=True, kw_only=True)
class Contrast(Decoding):
    """Base of contrasts with a second stream, which sees the sequence otherwise; `beside` is its logits [B, V]."""

    group = "contrast"

    cutoff: float = setting(
        0.1, "Tokens below this fraction of the highest probability are excluded.", "float", min=0, max=1
    )

    @property
    @abstractmethod
    def weight(self) -> float:
        """The alpha of `contrast`, > -1."""

    @property
    def is_identity(self) -> bool:
        """True if the second stream has no weight: then it does not run, and nothing is excluded."""
        return self.weight == 0

    def step(self, scores: Tensor, beside: Tensor | None) -> Tensor:
        """Return `contrast` of the log-probabilities of both streams."""
        if beside is None:
            raise ValueError(f"{self.label}: a contrast needs the logits of its second stream")
        return contrast(scores.float().log_softmax(-1), beside.float().log_softmax(-1), self.weight, self.cutoff)


@dataclass(frozen=True, kw_only=True)
class Away(Contrast):
    """Base of contrasts that move away from the second stream."""

    alpha: float = setting(1.0, "How far to move away from the second stream; 0 changes nothing.", "float", min=0)

    @property
    def weight(self) -> float:
        """The setting."""
        return self.alpha


class SeesPixels(ABC):
    """Base of contrasts whose second stream sees other pixels: override `change`."""

    @property
    def lacks(self) -> str | None:
        """What it has to be given before it can run, and how; None if nothing."""
        return None

    @abstractmethod
    def change(self, frame: Tensor, draw: Callable[[], Tensor]) -> Tensor:
        """Return what the second stream sees of one frame, of the same shape.

        Args:
            frame: pixels as the model takes them, normalised, [C, h, w] or [patches, values], padding left out.
            draw: makes standard normal numbers of the frame's shape, the same ones for the same pixels and seed.
        """


@dataclass(frozen=True, kw_only=True)
class EarlyExit(Decoding):
    """Base of steps that look at what early layers would say; `beside` is the head's logits of them [B, E, V]."""

    group = "early exit"
    reads = "early layers"

    layers: str = setting("", "Decoder layers whose output the head reads too, as indices and slices.", "str")
    norm: bool = setting(True, "Whether early rows pass the model's final norm before the head.", "bool")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_layers(self.layers, self.label)

    def at(self, depth: int) -> list[int]:
        """Return the early layers of a model with `depth` decoder layers, rising; the last is none of them.

        Raises:
            ValueError: a layer that does not exist, or none that is early.
        """
        found = sorted(layer_numbers(self.layers, depth, self.label) - {depth - 1})
        if not found:
            raise ValueError(f"{self.label}: layers={self.layers!r} names no early layer of {depth}")
        return found


registry: Registry[Decoding] = Registry(Decoding)  # type: ignore[type-abstract]
register = registry.register

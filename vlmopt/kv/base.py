"""The contract of an eviction: its budget, what never leaves, the attention rows it reads, and `score`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from vlmopt.core import Configured, Registry, setting, validate

from .view import KVView

LAYER_BUDGETS = ("even", "pyramid", "adaptive")
PROTECT = ("text", "ends")


@dataclass(frozen=True, kw_only=True)
class Eviction(Configured, ABC):
    """Base of every eviction: when the prompt is over, each layer keeps the keys and values of highest score.

    Keys that compete are those of the prompt that nothing protects; `keep_ratio` counts them, what is protected comes
    on top. Generated tokens always stay.

    Raises:
        TypeError, ValueError: a setting of the wrong type or out of range, or budgets that the method cannot measure.
    """

    name: ClassVar[str] = ""  # set by `register`
    reads: ClassVar[str] = "nothing"  # what the choice depends on, in words, for tables
    query_aware: ClassVar[bool] = False  # the choice depends on the question, so the cache is bound to it

    keep_ratio: float = setting(
        0.2, "Fraction of the competing keys that stays, as a mean over the layers.", "float", above=0, max=1
    )
    layer_budgets: str = setting(
        "even",
        "How layers share the budget: evenly, falling with depth (pyramid), or the more the less sparse their "
        "attention is (adaptive).",
        "str",
        choices=LAYER_BUDGETS,
    )
    protect: str = setting(
        "text",
        "What never leaves: text, so that visual keys alone compete; or the ends of the prompt only.",
        "str",
        choices=PROTECT,
    )
    first: int = setting(4, "First keys of the prompt that never leave: attention sinks.", "int", min=0)
    recent: int = setting(8, "Last keys of the prompt that never leave.", "int", min=1)
    per_head: bool = setting(
        True, "Every key-value head keeps keys of its own; False: one set per layer, by the mean score.", "bool"
    )

    def __post_init__(self) -> None:
        validate(self, self.label)
        if self.layer_budgets == "adaptive" and not self.rows:
            raise ValueError(
                f"{self.label}: layer_budgets='adaptive' measures how sparse attention rows are, and this method reads "
                "none; use 'even' or 'pyramid', or a method that reads attention (vl_cache, snap_kv)"
            )

    @property
    def label(self) -> str:
        """The name for messages."""
        return self.name or type(self).__name__

    @property
    def is_identity(self) -> bool:
        """True if every key stays whatever the prompt."""
        return self.keep_ratio == 1

    @property
    def rows(self) -> int | str:
        """Say which attention rows it reads: so many last ones, `TEXT` for those behind the last image, or 0."""
        return 0

    @property
    def on_grid(self) -> bool:
        """Whether it reads which keys are neighbours on the patch grid."""
        return False

    @abstractmethod
    def score(self, view: KVView) -> Tensor:
        """Return fp32 [B, Hk, n]: how much each key of each head is worth, higher = keep; padding may hold anything."""


registry: Registry[Eviction] = Registry(Eviction)  # type: ignore[type-abstract]
register = registry.register

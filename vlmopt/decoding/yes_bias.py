"""A constant on the logits of "yes": the control for what contrasts gain on questions of yes and no."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from vlmopt.core import setting

from .base import Decoding, register

WORDS = ("yes", "Yes", " yes", " Yes")


@register("yes_bias")
@dataclass(frozen=True, kw_only=True)
class YesBias(Decoding):
    """Adds a constant to the logits of "yes": the control for answers that a contrast turns to yes (arXiv 2504.10020).

    With `c` fitted so that as many answers are yes as under a contrast, the difference between the two is what the
    contrast itself gives.
    """

    c: float = setting(0.5, "What is added to the logits; negative values take yes answers away.", "float")
    ids: tuple[int, ...] = setting((), "Token ids of yes; `yes_ids(tokenizer)` finds them.", "ints", min=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.ids:
            raise ValueError(
                f"{self.label}: ids must name the tokens of yes, as vlmopt.decoding.yes_ids(processor.tokenizer) gives "
                "them; a model does not know its words"
            )
        if len(set(self.ids)) < len(self.ids):
            raise ValueError(f"{self.label}: ids={self.ids} names a token twice, which would gain the constant twice")

    @property
    def is_identity(self) -> bool:
        """True where nothing is added."""
        return self.c == 0

    def check_vocabulary(self, tokens: int) -> None:
        """Raise `ValueError` for an id that the model does not have."""
        if max(self.ids) >= tokens:
            raise ValueError(f"{self.label}: ids={self.ids} must lie below the {tokens} tokens of the model")

    def step(self, scores: Tensor, beside: Tensor | None) -> Tensor:
        """Return the logits with the constant."""
        self.check_vocabulary(scores.shape[-1])
        ids = scores.new_tensor(self.ids).long()
        return scores.index_add(-1, ids, scores.new_full((*scores.shape[:-1], len(ids)), self.c))


def yes_ids(tokenizer: Any) -> tuple[int, ...]:
    """Return the ids of the single tokens with which an answer of "yes" begins.

    Raises:
        ValueError: the tokenizer has no single token for any spelling.
    """
    spelt = [tokenizer(word, add_special_tokens=False)["input_ids"] for word in WORDS]
    found = tuple(sorted({ids[0] for ids in spelt if len(ids) == 1}))
    if not found:
        raise ValueError(f"{type(tokenizer).__name__} spells yes with several tokens: {spelt}; name the ids yourself")
    return found

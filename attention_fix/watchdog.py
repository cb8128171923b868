"""Notice text that repeats itself, to which strong boosts are prone."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vlmopt.core import setting

SHORT, LONG = 4, 16  # tokens of the n-grams that are counted, and of the long one that stands for a sentence
DISTINCT = 0.6  # share of different short n-grams below which a text repeats itself
SHORTEST = 32  # tokens below which nothing is said


@dataclass(frozen=True, kw_only=True)
class Watched:
    """The setting of corrections that can drive a text into repetition."""

    watchdog: str = setting(
        "off",
        "What happens to samples whose text begins to repeat itself: off: nothing; mark: the report names them; stop: "
        "they are also left uncorrected from there on.",
        "str",
        choices=("off", "mark", "stop"),
    )


def repetitive(ids: Tensor, window: int = 128) -> Tensor:
    """Return Bool[B]: whether each text repeats itself (distinct-4 below 0.6, or 16 tokens in a row seen before).

    Our own rule; 16 tokens stand for a sentence. Looks at the last `window` tokens, in O(window^2), without
    synchronising the device. It never reports a text below 32 tokens. Ask about running samples only: padding repeats
    itself.

    Args:
        ids: Long[B, T], generated tokens. window: >= 32.
    """
    if window < SHORTEST:
        raise ValueError(f"window={window} must be at least {SHORTEST} tokens")
    ids = ids[:, -window:]
    if ids.shape[1] < SHORTEST:
        return ids.new_zeros(ids.shape[0]).bool()
    same = (ids[:, :, None] == ids[:, None, :]).tril(-1)  # token i is the earlier token j
    short = doubled(doubled(same, 1), 2)
    long = doubled(doubled(short, 4), 8)
    distinct = (~short.any(-1)).float().mean(-1)
    return (distinct < DISTINCT) | long.flatten(1).any(-1)


def doubled(same: Tensor, n: int) -> Tensor:
    """Return which pairs of 2n-grams are equal, from those of n-grams: Bool[B, G, G] -> Bool[B, G - n, G - n]."""
    return same[:, :-n, :-n] & same[:, n:, n:]

"""Sum the attention to generated text before words for objects, and make the profile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vlmopt.attention_fix import IATProfile

KINDS = ("hallucinated", "real")
WORDS = 30  # for objects, of either kind, at least
CLEAR = 2.0  # standard errors


class IATSums:
    """Running sums by kind of word, layer and head; words count alike.

    Args:
        layers: decoder layers of the model. heads: of each. state: of earlier sums.
    """

    def __init__(self, layers: int, heads: int, state: Mapping[str, Any] | None = None) -> None:
        state = state or {}
        self.captions = int(state.get("captions", 0))
        shapes = {"words": (), "places": (), "sums": (layers, heads), "squares": (layers,)}
        blank = {name: torch.zeros(len(KINDS), *shape).tolist() for name, shape in shapes.items()}
        self.tables = {name: torch.tensor(state.get(name, blank[name]), dtype=torch.float64) for name in blank}

    def take(self, means: Tensor, place: int, real: bool) -> None:
        """Add one word: mean weights of generated keys, fp64 [layers, heads], and the number of tokens before it."""
        found: dict[str, Tensor | int] = {"words": 1, "places": place, "sums": means, "squares": means.sum(-1).square()}
        for name, value in found.items():
            self.tables[name][int(real)] += value

    def state(self) -> dict[str, Any]:
        """Return the state, JSON-ready."""
        return {"captions": self.captions, **{name: table.tolist() for name, table in self.tables.items()}}

    def profile(self, facts: Mapping[str, Any], layers: Sequence[int], lexicon: str) -> IATProfile:
        """Return the means; `stats` say how clearly real and invented words differ, words taken as independent.

        Args:
            facts: about the model. layers: that were read. lexicon: where the names of objects come from.

        Raises:
            ValueError: too few words of either kind.
        """
        words = self.tables["words"]
        count = dict(zip(KINDS, map(int, words.tolist()), strict=True))
        if min(count.values()) < WORDS:
            raise ValueError(
                f"{self.captions} captions name {count['hallucinated']} hallucinated and {count['real']} real objects "
                f"behind their first token, {WORDS} of each are needed: describe more images (--samples; the same "
                "command goes on from here), or images that are harder to recognise"
            )
        means = self.tables["sums"] / words[:, None, None]
        attended = means.sum(-1)
        variance = (self.tables["squares"] / words[:, None] - attended.square()) / (words[:, None] - 1)
        error = variance.clamp_min(0).sum(0).sqrt().clamp_min(1e-12)
        above = ((attended[1] - attended[0]) / error)[list(layers)].tolist()
        unclear = [str(layer) for layer, value in zip(layers, above, strict=True) if value < CLEAR]
        doubt = f"attention is not clearly higher before real words in layers {', '.join(unclear)}"
        stats: dict[str, Any] = {
            "layers": list(layers),
            "words": count,
            "tokens_before": dict(zip(KINDS, (self.tables["places"] / words).tolist(), strict=True)),
            "standard_errors": above,  # standard errors by which real words exceed hallucinated ones, per layer
            "lexicon": lexicon,
            "warnings": [doubt] if unclear else [],
        }
        ratios = (means[1] / means[0].clamp_min(1e-30)).where(means[0] > 0, 1.0)  # 1: such a head is left alone
        tables: dict[str, Any] = {"ratios": ratios.tolist(), **dict(zip(KINDS, attended.tolist(), strict=True))}
        return IATProfile(model=facts, samples=self.captions, stats=stats, **tables)

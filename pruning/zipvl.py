"""ZipVL: keep as many tokens as it takes to hold most of the attention."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vlmopt.core.settings import setting

from .base import ScoreSelector, register, top
from .signals import AttentionRows, Signal
from .tokens import Selection, VisualTokens


@register("zipvl")
@dataclass(frozen=True, kw_only=True)
class ZipVL(ScoreSelector):
    """Keep the tokens that the last rows attend to most, as many as hold a fraction tau of a layer's attention.

    ZipVL: Efficient Large Vision-Language Models with Dynamic Token Sparsification (arXiv 2410.08584). With
    c_j = sum_q A_qj, the count is min{p : the p largest c_j sum to >= tau * sum c}; the choice goes by c_j / number of
    rows that see j. Three things differ here. Visual columns alone are counted, so text that takes attention does not
    matter. The rows are the last ones, without random ones. One layer decides; give several of these for several cuts.
    """

    reads = "attention"
    query_aware = True
    trend = True
    adaptive = True

    keep_ratio: float | None = setting(
        None, "Largest fraction of visual tokens that stays; 1: no ceiling.", "float", above=0, max=1
    )
    keep_tokens: int | None = setting(None, "Largest number of visual tokens that stays.", "int", min=1)
    layer: int = setting(
        2, "Tokens leave before this decoder layer; the attention of the layer before it decides.", "int", min=1
    )
    tau: float = setting(0.975, "Fraction of the attention on visual tokens that has to stay.", "float", above=0, max=1)
    rows: int = setting(64, "Prompt rows at the end whose attention is read.", "int", min=1)

    def __post_init__(self) -> None:
        if self.keep_ratio is None and self.keep_tokens is None:
            object.__setattr__(self, "keep_ratio", 1.0)
        super().__post_init__()

    @property
    def is_identity(self) -> bool:
        return super().is_identity and self.tau == 1

    @property
    def needs(self) -> frozenset[Signal]:
        return frozenset({AttentionRows(self.layer - 1, self.rows)})

    def attention(self, tokens: VisualTokens) -> Tensor:
        """Return the attention, fp32 [R, n], mean over heads."""
        rows: Tensor = tokens.signals[AttentionRows(self.layer - 1, self.rows)]
        return rows.float().mean(0)

    def score(self, tokens: VisualTokens) -> Tensor:
        return per_row(self.attention(tokens))

    def take(self, tokens: VisualTokens, k: int, scores: Tensor) -> Selection:
        wanted = mass_count(self.attention(tokens).sum(0), self.tau)
        return Selection(top(scores, min(wanted, k)), scores, {"wanted": wanted})


def per_row(attention: Tensor) -> Tensor:
    """Return fp32 [n]: the attention [R, n] a column gets per row that sees it (masked entries are exactly 0)."""
    return attention.sum(0) / (attention > 0).sum(0).clamp_min(1)


def mass_count(mass: Tensor, tau: float) -> int:
    """Return the fewest of n >= 1 masses >= 0 that sum to at least tau of all; all of them for tau = 1."""
    if tau == 1:
        return len(mass)
    held = mass.sort(descending=True).values.cumsum(0)
    short = held < (tau - 1e-6) * held[-1]  # 1e-6: sums in fp32 that should be equal
    return min(int(short.sum()) + 1, len(mass))  # a count has to be known on the host

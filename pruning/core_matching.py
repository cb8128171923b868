"""CoreMatching: keep tokens that fire the neurons which the text needs."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from vlmopt.core.settings import setting

from .base import ScoreSelector, register, top
from .signals import Activations, Signal
from .tokens import Selection, VisualTokens

OURS = ("rho", "beta", "sentence", "min_ratio", "max_ratio")  # what the released code has not
LISTENER = 5  # the text token, counted from the end, whose neurons the released code reads


@register("core_matching")
@dataclass(frozen=True, kw_only=True)
class CoreMatching(ScoreSelector):
    """Keep tokens whose positive neurons before the cut are most often core neurons of the text, down to the knee.

    CoreMatching: A Co-adaptive Sparse Inference Framework with Token and Neuron Pruning for Comprehensive Acceleration
    of Vision-Language Models (arXiv 2505.19235). The core neurons of a token are the highest fraction rho of its
    positive activations. Those of the sentence are the fraction beta of all neurons that is core most often. q_i =
    |positive(x_i) & core|; tokens above the knee of the sorted q stay, within min_ratio..max_ratio of the tokens seen.
    This range is ours. In the released code the core is the positive neurons of one text token, and there is no such
    range. It also zeroes keys and values instead of dropping tokens, and chooses anew at every step and layer; that is
    left out.
    """

    reads = "neurons"
    query_aware = True
    adaptive = True

    keep_ratio: float | None = setting(
        None, "Largest fraction of visual tokens that stays; 1: no ceiling.", "float", above=0, max=1
    )
    keep_tokens: int | None = setting(None, "Largest number of visual tokens that stays.", "int", min=1)
    layer: int = setting(
        6, "Tokens leave before this decoder layer; the neurons of the layer before it decide.", "int", min=1
    )
    rho: float = setting(
        0.6, "Fraction of a token's positive activations that makes its core.", "float", above=0, max=1
    )
    beta: float = setting(0.6, "Fraction of all neurons that makes the core of the sentence.", "float", above=0, max=1)
    min_ratio: float = setting(
        0.05, "Fraction of the tokens that stays at least, whatever the knee.", "float", min=0, max=1
    )
    max_ratio: float = setting(
        0.5, "Fraction of the tokens that stays at most, whatever the knee.", "float", above=0, max=1
    )
    sentence: str = setting(
        "text", "Whose neurons count: text: all text; prompt: also visual tokens, as the paper has it.", "str",
        choices=("text", "prompt"),
    )  # fmt: skip
    paper_compat: bool = setting(
        False,
        "As released: the core is what fires in the fifth text token from the end, and all tokens above the knee stay, "
        "without rho, beta, sentence and the ratios.",
        "bool",
    )

    def __post_init__(self) -> None:
        if self.keep_ratio is None and self.keep_tokens is None:
            object.__setattr__(self, "keep_ratio", 1.0)
        super().__post_init__()
        if self.min_ratio > self.max_ratio:
            raise ValueError(f"{self.label}: min_ratio={self.min_ratio} exceeds max_ratio={self.max_ratio}")
        unused = [f.name for f in fields(self) if f.name in OURS and getattr(self, f.name) != f.default]
        if self.paper_compat and unused:
            raise ValueError(f"{self.label}: paper_compat has no use for {unused}; leave them out")

    @property
    def is_identity(self) -> bool:
        return False  # keep_ratio is a ceiling

    @property
    def needs(self) -> frozenset[Signal]:
        return frozenset({Activations(self.layer - 1, "visual"), Activations(self.layer - 1, "text")})

    def score(self, tokens: VisualTokens) -> Tensor:
        visual: Tensor = tokens.signals[Activations(self.layer - 1, "visual")]
        text: Tensor = tokens.signals[Activations(self.layer - 1, "text")]
        if self.paper_compat:
            return ((visual > 0) & (text[-LISTENER:][:1].sum(0) > 0)).sum(1).float()
        counts = core_counts(text, self.rho)
        if self.sentence == "prompt":
            counts = counts + core_counts(visual, self.rho)
        core = torch.zeros_like(counts, dtype=torch.bool)
        core[top(counts, max(int(self.beta * len(counts) + 0.5), 1))] = True
        return ((visual > 0) & core & (counts > 0)).sum(1).float()

    def take(self, tokens: VisualTokens, k: int, scores: Tensor) -> Selection:
        curve = scores.sort(descending=True).values
        turn = knee(curve)
        if self.paper_compat:
            above = int((curve > curve[turn]).sum())
            return Selection(top(scores, min(max(above, 1), k)), scores, {"knee": above})
        least, most = (max(int(ratio * len(tokens) + 0.5), 1) for ratio in (self.min_ratio, self.max_ratio))
        above = int(turn)  # a count has to be known on the host
        return Selection(top(scores, min(max(above, least), most, k)), scores, {"knee": above})


def core_counts(activations: Tensor, rho: float) -> Tensor:
    """Return Long[m]: how many of the rows [R, m] have a neuron among the top fraction rho of their positive ones."""
    counts = torch.zeros(activations.shape[1], dtype=torch.long, device=activations.device)
    for part in activations.split(256):  # sorting takes several times the memory of what is sorted
        positive = part > 0
        count = (rho * positive.sum(1) + 0.5).long().clamp_min(1)
        lowest = part.sort(descending=True).values.gather(1, count[:, None] - 1)
        counts += (positive & (part >= lowest)).sum(0)
    return counts


def knee(values: Tensor) -> Tensor:
    """Return Long[]: the index of the point of the descending curve [n] farthest from the chord between its ends.

    The first such point in a tie; 0 for a straight line.
    """
    x = torch.arange(len(values), device=values.device)
    rise = values - values[0]
    return (rise * x[-1] - rise[-1] * x).abs().argmax()

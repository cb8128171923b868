"""ZOO-Prune: keep tokens to which the projector is sensitive, and that differ from each other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vlmopt.core.settings import setting

from .base import Selector, finite, register, top
from .greedy import farthest
from .released import Renumbered
from .sensitivity import (
    closed_form,
    directions,
    finite_difference,
    fold,
    forward_mode,
    frobenius,
    low_rank,
    relative_steps,
)
from .signals import Projector, ProjectorCall, Signal, VisualEmbeds
from .tokens import Selection, VisualTokens

ESTIMATORS = ("auto", "finite_difference", "jvp", "closed_form", "frobenius")
PAPER_STEP = 0.01
FLAT = 1e-4  # sensitivities closer than this to the largest are noise, and all count as equal


@register("zeroth_order")
@dataclass(frozen=True, kw_only=True)
class ZeroOrder(Renumbered, Selector):
    """Keep, greedily, the largest sensitivity * (1 - cosine to the nearest token kept so far), before the LLM.

    Training-Free Token Pruning in Vision-Language Models via Zeroth-Order Gradient Estimation (ZOO-Prune,
    arXiv 2509.24837). Sensitivity S_i = E_u ||J(x_i) u|| of the projector, stretched to 0..1 within a segment. It reads
    neither question nor attention. Where the projector is linear, S is equal for all tokens and diversity decides. On
    LLaVA-NeXT the released code gives every tile the same count and keeps all row separators; that is left out.
    """

    reads = "projector"

    layer: int = setting(0, "Always 0: before the LLM, where the projector's output is.", "int", min=0, max=0)
    estimator: str = setting(
        "auto",
        "How sensitivity is measured: finite_difference and jvp for any projector; closed_form (same as jvp, faster) "
        "and frobenius (root mean square, no directions) for MLPs with one hidden layer; auto: frobenius, else jvp, "
        "else (weights are quantised) finite_difference.",
        "str",
        choices=ESTIMATORS,
    )
    directions: int = setting(64, "Random directions, shared by all tokens.", "int", min=1, max=4096)
    step: float = setting(
        1e-3, "Step of finite_difference, relative to the length of a token's projector input.", "float", above=0, max=1
    )
    rank: int | None = setting(
        None, "Score with both matrices of an MLP cut to this rank (the paper: 128 on LLaVA-NeXT).", "int", min=1
    )
    combine: str = setting(
        "product", "What decides: the product, or one of the two alone.", "str",
        choices=("product", "sensitivity", "diversity"),
    )  # fmt: skip
    paper_compat: bool = setting(
        False,
        "As released: finite differences with an absolute step of 0.01, sensitivities equal only to the last bit, "
        "budget rounded down, survivors renumbered.",
        "bool",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.paper_compat and self.estimator not in ("auto", "finite_difference"):
            raise ValueError(
                f"{self.label}: paper_compat means finite_difference, got estimator={self.estimator!r}; leave one out"
            )

    def check_projector(self, mlp: bool, differentiable: bool) -> None:
        if not mlp and (self.estimator in ("closed_form", "frobenius") or self.rank is not None):
            asked = f"rank={self.rank}" if self.rank is not None else f"estimator={self.estimator!r}"
            raise ValueError(
                f"{self.label}: {asked} needs a projector that is an MLP with one hidden layer, and this model's is "
                "not; use estimator='jvp' or 'finite_difference' without rank"
            )
        if self.estimator == "jvp" and not (mlp or differentiable):
            raise ValueError(
                f"{self.label}: estimator='jvp' needs derivatives, which the quantised weights of this projector have "
                "not; use estimator='finite_difference' or leave the projector unquantised"
            )

    def budget(self, total: int) -> int:
        if self.paper_compat and self.keep_ratio is not None:
            return max(int(self.keep_ratio * total), 1)
        return super().budget(total)

    @property
    def needs(self) -> frozenset[Signal]:
        read: set[Signal] = set()
        if self.combine != "sensitivity":
            read.add(VisualEmbeds())
        if self.combine != "diversity":
            read.add(Projector())
        return frozenset(read)

    def pick(self, tokens: VisualTokens, k: int) -> Selection:
        if self.combine == "diversity":
            return Selection(farthest(tokens.signals[VisualEmbeds()], k).sort().values)
        raw = finite(self.sensitivity(tokens), len(tokens), self.label)
        scores, flat = stretch(raw, 0.0 if self.paper_compat else FLAT)
        if self.combine == "sensitivity":
            keep = top(scores, k)
        else:
            keep = farthest(tokens.signals[VisualEmbeds()], k, scores).sort().values
        return Selection(keep, scores, {"constant_sensitivity": flat})

    def sensitivity(self, tokens: VisualTokens) -> Tensor:
        """Return the sensitivity of each token by itself, fp32 [n] >= 0; raise `ValueError` as `check_projector`."""
        call: ProjectorCall = tokens.signals[Projector()]
        layers, estimator = call.layers, self.estimator
        self.check_projector(layers is not None, call.differentiable)
        if estimator == "auto":
            by_steps = self.paper_compat or (layers is None and not call.differentiable)
            estimator = "finite_difference" if by_steps else "jvp" if layers is None else "frobenius"
        inputs = call.inputs.float()
        p = inputs.shape[1]
        function: Callable[[Tensor], Tensor]
        if layers is None:
            mlp, function = None, lambda x: call.function(x.to(call.inputs.dtype))
        else:
            rank = self.rank
            mlp = function = layers.derive(  # kept with the weights: two SVDs, or products of h x h, are dear
                ("fold", p, rank), lambda: fold(layers if rank is None else low_rank(layers, rank), p)
            )
        if mlp is not None and estimator == "frobenius":
            return frobenius(mlp, inputs)
        bank = directions(self.directions, p, inputs.shape[2], tokens.seed).to(inputs.device)
        if mlp is not None and estimator == "closed_form":
            return closed_form(mlp, inputs, bank)
        if estimator == "jvp":
            return forward_mode(function, inputs, bank)
        steps = inputs.new_full((len(inputs),), PAPER_STEP) if self.paper_compat else relative_steps(inputs, self.step)
        return finite_difference(function, inputs, bank, steps)


def stretch(raw: Tensor, tolerance: float) -> tuple[Tensor, bool]:
    """Map scores [n] >= 0 to 0..1 by their least and largest; where they are equal return all 1, and True."""
    low, high = raw.aminmax()
    flat = bool(high - low <= tolerance * high)
    return (torch.ones_like(raw) if flat else (raw - low) / (high - low + 1e-8)), flat

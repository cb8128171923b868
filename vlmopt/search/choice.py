"""Choose, from errors and costs, one pattern per head, and among boundaries the best of each kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels.patterns import Boundary2D, Pattern, QBoundary, ViewPattern
from ..kernels.patterns.boundary import CLASSES
from .layer import PARTS, SLACK

TIE = 0.005  # share of the output: errors that differ by less, as bf16 rounds, tie, and the cheapest wins


@dataclass(frozen=True, eq=False)
class Best:
    """The best of one class for each head; all [H]."""

    error: Tensor  # fp64; infinite where nothing is within the budget
    cost: Tensor  # fp64
    numbers: Tensor  # Long[n, H]: candidates of the n parts


@dataclass(frozen=True)
class Chosen:
    """One head's pattern."""

    pattern: Pattern
    error: float
    ratio: float  # of its cost to that of the reference


def pick(error: Tensor, cost: Tensor, budget: Tensor, share: Tensor | float = 1.0) -> Tensor:
    """Return Long[H]: the cheapest candidate, of [N, H], among those within the budget [H] with the least error.

    Errors are equal up to `TIE` of the `share` [H] of the output that is at stake.
    """
    error = error.masked_fill(cost > budget, torch.inf)
    near = error <= error.amin(0) + TIE * share
    return cost.masked_fill(~near, torch.inf).argmin(0)


def together(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor], budget: Tensor, share: Tensor) -> Best:
    """Return the best pair of candidates for two parts, (errors, costs) [C, H] each, with one budget [H]."""
    error, cost = ((a[:, None] + b).flatten(0, 1) for a, b in zip(one, other, strict=True))
    chosen = pick(error, cost, budget, share)[None]
    spent = cost.gather(0, chosen)[0]
    error = error.gather(0, chosen)[0].masked_fill(spent > budget, torch.inf)
    return Best(error, spent, torch.cat([chosen // len(other[0]), chosen % len(other[0])]))


def best_of_each(errors: Tensor, costs: Tensor, shares: Tensor) -> list[Best]:
    """Return one pattern for all rows, one per modality of rows, one per pair of modalities.

    The first candidate is the reference. A pattern per modality has exactly the sum of the errors of its rows. Of pairs
    the sum is an estimate: the errors of a row's two parts may also cancel, and its softmax is shared.

    Args:
        errors, costs: fp64 [P, C, H] by part, as in `Measured`. shares: fp64 [2, H], as there.
    """
    by_name = {name: (errors[i], costs[i]) for i, name in enumerate(PARTS)}
    error, cost = by_name["all"]
    budget = SLACK * cost[0]
    chosen = pick(error, cost, budget)[None]
    plain = Best(error.gather(0, chosen)[0], cost.gather(0, chosen)[0], chosen)
    text, vision = (by_name[name] for name in CLASSES)
    by_rows = together(text, vision, budget, shares.amin(0))
    spent = text[1][0] + vision[1][0]  # by the reference; a row's pairs may take what it takes there
    pairs = [
        together(by_name[f"{name}_text"], by_name[f"{name}_vision"], budget * by_name[name][1][0] / spent, share)
        for name, share in zip(CLASSES, shares, strict=True)
    ]
    by_pairs = Best(
        pairs[0].error + pairs[1].error, pairs[0].cost + pairs[1].cost, torch.cat([p.numbers for p in pairs])
    )
    return [plain, by_rows, by_pairs]


def pattern(numbers: Sequence[int], candidates: Sequence[ViewPattern]) -> Pattern:
    """Return the pattern of one, two or four candidates: for all rows, for text and vision rows, or for their pairs."""
    parts = [candidates[i] for i in numbers]
    if len(parts) == 1:
        return parts[0]
    if len(parts) == 2:
        return QBoundary(text=parts[0], vision=parts[1])
    text_text, text_vision, vision_text, vision_vision = parts
    return Boundary2D(
        text_text=text_text, text_vision=text_vision, vision_text=vision_text, vision_vision=vision_vision
    )


def composed(best: Best, candidates: Sequence[ViewPattern]) -> list[tuple[Pattern, Tensor]]:
    """Return the different patterns within the budget, and the heads Long[n] of each."""
    kinds, kind = best.numbers.unique(dim=1, return_inverse=True)
    groups = [((kind == i) & best.error.isfinite()).nonzero()[:, 0] for i in range(kinds.shape[1])]
    return [(pattern(k.tolist(), candidates), heads) for k, heads in zip(kinds.T, groups, strict=True) if len(heads)]


def decide(bests: Sequence[Best], candidates: Sequence[ViewPattern], reference: Tensor) -> list[Chosen]:
    """Return the class with the least error for every head; reference: fp64 [H], its cost."""
    errors, costs = torch.stack([b.error for b in bests]), torch.stack([b.cost for b in bests])
    which = pick(errors, costs, SLACK * reference).tolist()
    return [
        Chosen(
            pattern(bests[i].numbers[:, head].tolist(), candidates),
            float(errors[i, head]),
            float(costs[i, head] / reference[head]),
        )
        for head, i in enumerate(which)
    ]

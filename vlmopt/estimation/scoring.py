"""What choosing costs: the signals that a selector reads, and the greedy part of its choice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from vlmopt.pruning.greedy import holds
from vlmopt.pruning.signals import AttentionRows, FirstPassRows, LookAheadRows, Signal, Sinks, VisionAttention, Weights

from .cuts import Cut, Plan
from .tokens import ImageTokens
from .weights import Parts
from .work import causal, products, total, vision

RANKING = 30  # small operations of a choice that scores once and keeps the best
GREEDY = 8  # small operations per step of a greedy choice that computes a row of similarities
COLOURS = 3
PASSES = 8  # numbers moved for every one of an image: laid out anew, then filtered both ways, or compared
HELD = 3  # small operations per step where all similarities are held: take a row, the smaller of two, the largest


@dataclass(frozen=True)
class Scoring:
    """Work in fp32, one operation after another."""

    flops: float = 0
    values: float = 0  # numbers read
    steps: float = 0  # small operations that wait for one another
    unpriced: tuple[str, ...] = ()

    def __add__(self, other: Scoring) -> Scoring:
        return Scoring(
            self.flops + other.flops,
            self.values + other.values,
            self.steps + other.steps,
            self.unpriced + other.unpriced,
        )


def scoring(plan: Plan, parts: Parts) -> Scoring:
    """Price all choices of a plan."""
    out = Scoring()
    for cut in plan.cuts:
        if cut.selector.reads == "pixels":
            out += looked_at(cut, plan, parts)
        if cut.selector.resizes_pixels:
            continue
        for need in sorted(cut.selector.captures, key=repr):
            out += signal(need, cut, plan, parts)
        choose = CHOICES.get(host(cut.selector).name, ranked)
        out += choose(cut, plan, parts)
    return out


def host(selector: Any) -> Any:
    """Return the method whose choice it is, below `debias`."""
    return getattr(selector, "host", selector)


def signal(need: Signal, cut: Cut, plan: Plan, parts: Parts) -> Scoring:
    """Price what capturing a signal costs beside what the model computes anyway."""
    if isinstance(need, Weights):
        return Scoring(unpriced=(f"{cut.selector.label}: its trained scorer",))
    if isinstance(need, FirstPassRows):
        return first_pass(need, plan, parts)
    if isinstance(need, VisionAttention):
        return tower_rows(plan.images, parts)
    if isinstance(need, Sinks):  # a norm and a cosine of every hidden state
        values = plan.lengths[cut.selector.layer] * parts.width
        return Scoring(4 * values, 2 * values, RANKING)
    if not isinstance(need, AttentionRows):
        return Scoring()
    layer = parts.layers[need.layer]
    keys = plan.lengths[need.layer]
    width = layer.heads * layer.head_dim
    rows = plan.text if need.rows == "text" else need.rows
    probed = Scoring(2 * rows * keys * width, keys * layer.key_heads * layer.head_dim, RANKING)
    if isinstance(need, LookAheadRows):  # the queries, keys and values of a layer that has not run yet
        made = 2 * keys * parts.width * (width + 2 * layer.key_heads * layer.head_dim)
        return probed + Scoring(made)
    return probed


def looked_at(cut: Cut, plan: Plan, parts: Parts) -> Scoring:
    """Price what is done with the pixels of a cut's cells, as the tower's first product takes them."""
    tower = parts.tower
    each = tower.patchify.per_row / tower.width if tower.width else COLOURS  # rows of a tower of convolutions: pixels
    patches = cut.before * sum(sum(p.patches) for p in plan.images) / sum(p.projected for p in plan.images)
    return Scoring(values=PASSES * patches * each, steps=RANKING)


def tower_rows(images: Sequence[ImageTokens], parts: Parts) -> Scoring:
    """Price the attention that patches receive in one block: of the CLS row, or without one of all rows."""
    patches = [n for p in images for n in p.patches]
    pairs = sum(n if parts.tower.cls else n**2 for n in patches)
    return Scoring(2 * pairs * parts.tower.width, sum(patches) * parts.tower.width, RANKING)


def first_pass(need: FirstPassRows, plan: Plan, parts: Parts) -> Scoring:
    """Price a pass over smaller images through the tower and the first layers."""
    depth = len(parts.layers)
    layers = parts.layers[: (need.layer if need.layer is not None else round(2 * depth / 5)) + 1]
    n = plan.visual[0] / need.shrink**2 + plan.text
    works = [vision(parts.tower, plan.images, 1 / need.shrink**2)]
    works += [products(layer.matrices, n) for layer in layers]
    attention = sum(4 * causal(n, layer.window) * layer.heads * layer.head_dim for layer in layers)
    return Scoring(total(works).flops + attention, steps=RANKING * len(layers))


def ranked(cut: Cut, plan: Plan, parts: Parts) -> Scoring:
    """Price scores, and the choice of the best of them."""
    return Scoring(steps=RANKING)


def spread_out(cut: Cut, plan: Plan, parts: Parts) -> Scoring:
    """Price all cosines once, then one row of them per step."""
    n, k = cut.before, cut.after
    steps = HELD if holds(round(n), round(k), host(cut.selector).name == "div_prune") else GREEDY
    return Scoring(2 * n**2 * parts.width, n * parts.width + n**2 + k * n, steps * k)


def largest_volume(cut: Cut, plan: Plan, parts: Parts) -> Scoring:
    """Price a row of cosines and one of a Cholesky factor per step."""
    n, k = cut.before, cut.after
    return Scoring(2 * k * n * (parts.width + k / 2), k * n * (parts.width + k / 2), GREEDY * k)


def sensitivity(cut: Cut, plan: Plan, parts: Parts) -> Scoring:
    """Price how far the projector's output moves, then a weighted spread."""
    method: Any = cut.selector
    per_row = parts.projector.per_row if method.rank is None else method.rank * parts.projector.values
    evaluation = 2 * per_row * cut.before
    if method.paper_compat or method.estimator == "finite_difference":
        moved = Scoring(2 * method.directions * evaluation, steps=RANKING)
    elif method.estimator in ("jvp", "closed_form"):
        moved = Scoring((2 if method.estimator == "jvp" else 0.5) * method.directions * evaluation, steps=RANKING)
    else:  # from products of the weights alone, once they are derived
        moved = Scoring(evaluation, steps=RANKING)
    if method.combine == "sensitivity":
        return moved
    return moved + spread_out(cut, plan, parts)


def clustered(cut: Cut, plan: Plan, parts: Parts) -> Scoring:
    """Price the comparison of the best 30 % of what leaves with one another."""
    rest = 0.3 * (cut.before - cut.after) if getattr(cut.selector, "recycle", True) else 0
    return Scoring(2 * rest**2 * parts.width, rest * parts.width + rest**2, 2 * RANKING)


CHOICES: dict[str, Callable[[Cut, Plan, Parts], Scoring]] = {
    "div_prune": spread_out,
    "cen_prune": spread_out,
    "zeroth_order": sensitivity,
    "cd_pruner": largest_volume,
    "sparse_vlm": clustered,
}

"""How a number is divided by weights: sums, floors, caps, remainders."""

from __future__ import annotations

import random

from vlmopt.pruning.budget import apportion, share


def cases(count=400):
    """Random (weights, budget, caps, least): zero weights, empty parts and minima beyond the budget among them."""
    draw = random.Random(0)
    for _ in range(count):
        n = draw.randint(1, 7)
        caps = [draw.choice([0, 1, 2, 5, 17, 60]) for _ in range(n)]
        weights = [draw.choice([0.0, draw.random(), 1.0, 1e-9, 50 * draw.random()]) for _ in range(n)]
        yield weights, draw.randint(0, sum(caps) + 3), caps, draw.randint(0, 4)


def test_parts_sum_up_within_their_bounds():
    for weights, budget, caps, least in cases():
        parts = apportion(weights, budget, caps, least)
        assert sum(parts) == min(budget, sum(caps))
        assert all(0 <= part <= cap for part, cap in zip(parts, caps, strict=True))
        floors = [min(least, cap) for cap in caps]
        if sum(floors) <= sum(parts):
            assert all(part >= floor for part, floor in zip(parts, floors, strict=True))
        else:
            assert all(part <= floor for part, floor in zip(parts, floors, strict=True))


def test_parts_are_proportional_where_no_bound_is_in_the_way():
    for weights, budget, caps, _ in cases():
        if sum(weights):
            ideal = [budget * w / sum(weights) for w in weights]
            roomy = apportion(weights, budget, [budget + 1] * len(caps), 0)
            assert all(abs(part - want) < 1 for part, want in zip(roomy, ideal, strict=True))


def test_what_bounds_take_or_give_is_shared_in_proportion():
    """At the optimum one scale serves all: parts are scale * weight, cut to their bounds."""
    for weights, budget, caps, least in cases():
        floors = [min(least, cap) for cap in caps]
        if not sum(floors) < budget < sum(caps) or not all(weights):
            continue
        low, high = 0.0, 1e15
        for _ in range(200):
            scale = (low + high) / 2
            filled = [min(max(scale * w, f), c) for w, f, c in zip(weights, floors, caps, strict=True)]
            low, high = (scale, high) if sum(filled) < budget else (low, scale)
        got = apportion(weights, budget, caps, least)
        assert all(abs(part - want) < 1 + 1e-6 for part, want in zip(got, filled, strict=True))


def test_order_of_the_parts_does_not_matter():
    weights, caps = [3.7, 11.2, 0.9, 6.1, 20.3], [9, 4, 30, 8, 12]  # no two remainders are equal
    for budget in range(64):
        parts = apportion(weights, budget, caps, 1)
        for order in ([4, 3, 2, 1, 0], [2, 0, 4, 1, 3]):
            moved = apportion([weights[i] for i in order], budget, [caps[i] for i in order], 1)
            assert moved == [parts[i] for i in order]


def test_cases_one_can_count():
    assert share([10, 30], 4) == [1, 3]
    assert share([1, 1, 1], 2) == [1, 1, 0]  # ties go to the earlier part
    assert share([1, 100], 1) == [0, 1]  # not even one for each: the heavier first
    assert share([0, 5], 3) == [0, 3]
    assert apportion([1, 1], 5, [1, 9], 0) == [1, 4]
    assert apportion([0, 0], 5, [9, 9], 0) == [3, 2]  # nothing to go by
    assert apportion([0, 1], 5, [9, 9], 2) == [2, 3]
    assert apportion([1, 3], 3, [9, 9], 2) == [1, 2]

"""The greedy choice of tokens that are far from each other: golden orders, ties, copies, and a loop one can read."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize
from torch.utils._python_dispatch import TorchDispatchMode

from vlmopt.estimation.scoring import GREEDY, HELD
from vlmopt.pruning import greedy
from vlmopt.pruning.greedy import farthest


def random_features(n, d, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) + 0.5


def circle(*degrees):
    angle = torch.deg2rad(torch.tensor(degrees))
    return torch.stack([angle.cos(), angle.sin()], 1)


def by_loop(features, k, weights, first):
    """The same in double precision, one pair at a time."""
    unit = normalize(features.double(), dim=1)
    distance = 1 - unit @ unit.T
    picked = [first]
    while len(picked) < k:
        rest = [i for i in range(len(unit)) if i not in picked]
        gains = [float(weights[i]) * min(float(distance[i, j]) for j in picked) for i in rest]
        picked.append(rest[gains.index(max(gains))])
    return picked


def test_golden_weighted():
    z = torch.tensor([[1, 0], [1, 0], [0, 1], [0.5**0.5, 0.5**0.5]])
    weights = torch.tensor([1, 0.95, 0.5, 0])
    assert farthest(z, 2, weights).tolist() == [0, 2]
    assert farthest(z, 4, weights).tolist() == [0, 2, 1, 3]  # a tie of zeros: the lowest index


def test_golden_unweighted():
    z = circle(0.0, 60.0, 90.0, 95.0)
    assert farthest(z, 4).tolist() == [0, 3, 1, 2]
    assert farthest(z * torch.tensor([[3.0], [0.1], [7], [1e-3]]), 4).tolist() == [0, 3, 1, 2]


@pytest.mark.parametrize("seed", range(8))
def test_against_a_loop(seed):
    z = random_features(23, 5, seed)
    weights = torch.rand(23, generator=torch.Generator().manual_seed(seed))
    assert farthest(z, 23, weights).tolist() == by_loop(z, 23, weights, int(weights.argmax()))
    assert farthest(z, 9, weights, torch.tensor(4)).tolist() == by_loop(z, 9, weights, 4)
    nearest = (normalize(z, dim=1) @ normalize(z, dim=1).T).fill_diagonal_(-2).amax(1)
    first = (nearest <= nearest.min() + 1e-6).nonzero()[0].item()
    assert farthest(z, 23).tolist() == by_loop(z, 23, torch.ones(23), first)


def test_the_first_of_many_rows_is_found_across_blocks():
    z = random_features(1500, 8).abs()  # all in one orthant, but for one beyond the first block of rows
    z[1300] = -z[1300]
    assert farthest(z, 1).tolist() == [1300]


def test_rounding_does_not_decide_the_first():
    z = torch.zeros(4, 4)
    z[0, 0] = z[2, 2] = 1
    z[1, :2], z[3, 2:] = circle(60.0)[0], circle(60.00003)[0]  # the second pair is farther apart by 4.5e-7
    assert farthest(z, 1).tolist() == [0]


def test_copies_come_after_everything_else():
    z = random_features(40, 6).repeat(2, 1) * torch.linspace(0.5, 3, 80)[:, None]  # of other lengths
    weights = torch.rand(40, generator=torch.Generator().manual_seed(1)).add(0.1).repeat(2)
    order = farthest(z, 80, weights)
    assert (order[:40] % 40).unique().numel() == 40
    rest = order[40:]
    assert torch.equal(rest, rest.sort().values)  # all gains are exactly 0, so the lowest index is next
    for again in (order, farthest(z, 80)):
        assert again.unique().numel() == 80


def test_identical_tokens_go_in_order():
    assert farthest(torch.ones(5, 3), 5).tolist() == [0, 1, 2, 3, 4]
    assert farthest(torch.ones(5, 3), 3, torch.zeros(5)).tolist() == [0, 1, 2]


def test_zero_rows_are_no_number_trouble():
    z = random_features(6, 4)
    z[[2, 5]] = 0
    order = farthest(z, 6)
    assert sorted(order.tolist()) == list(range(6))
    assert farthest(torch.zeros(3, 4), 3).tolist() == [0, 1, 2]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_features_are_compared_in_fp32(dtype):
    z = random_features(30, 16).to(dtype)
    assert torch.equal(farthest(z, 30), farthest(z.float(), 30))


def test_fewer_tokens_are_the_first_of_more():
    z, weights = random_features(50, 7), torch.rand(50, generator=torch.Generator().manual_seed(2))
    assert torch.equal(farthest(z, 11, weights), farthest(z, 50, weights)[:11])


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("n", [1, 40, 700])
def test_cosines_that_are_kept_change_no_choice(n, weighted, monkeypatch):
    z = torch.cat([random_features(n, 24), random_features(n, 24, seed=1)[: n // 3] * 2, random_features(n, 24)[:9]])
    weights = torch.rand(len(z), generator=torch.Generator().manual_seed(3)) if weighted else None
    ks = sorted({1, len(z) // 40 + 1, len(z) // 4 + 1, len(z)})
    kept = [farthest(z, k, weights) for k in ks]
    monkeypatch.setattr(greedy, "HELD", 0)
    by_rows = [farthest(z, k, weights) for k in ks]
    assert all(torch.equal(a, b) for a, b in zip(kept, by_rows, strict=True))


def test_coarse_products_of_matrices_are_not_kept(monkeypatch):
    z = random_features(60, 8)
    order = farthest(z, 60)
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")  # asked for by the user, for the model
    monkeypatch.setattr(greedy, "lowest", lambda closeness: pytest.fail("cosines were kept"))
    assert torch.equal(farthest(z, 60, first=order[0]), order)


def test_one_token():
    for weights in (None, torch.tensor([0.0])):
        assert farthest(torch.ones(1, 4), 1, weights).tolist() == [0]


@pytest.mark.parametrize("k", [0, -1, 6])
def test_impossible_numbers_are_refused(k):
    with pytest.raises(ValueError, match=r"within 1\.\.5"):
        farthest(torch.ones(5, 2), k)


class Operations(TorchDispatchMode):
    """Counts what a device would be asked to do, views left out."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += "select.int" not in str(func) or "index" in str(func)
        return func(*args, **kwargs or {})


@pytest.mark.parametrize(
    ("n", "k", "first", "priced"), [(256, 64, 0, HELD), (256, 8, None, HELD), (1024, 8, 0, GREEDY)]
)
def test_a_prediction_counts_the_operations_of_every_choice(n, k, first, priced):
    z, begin = random_features(n, 8), None if first is None else torch.tensor(first)
    counts = []
    for many in (k, k + 8):
        with Operations() as asked:
            farthest(z, many, first=begin)
        counts.append(asked.count)
    assert counts[1] - counts[0] == 8 * priced

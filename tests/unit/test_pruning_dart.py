"""DART: pivots by norm, quotas by what is least like them."""

from __future__ import annotations

import pytest
import torch

from tests.support.embedded import embedded, keep_of, visual
from vlmopt.pruning import DART, TextEmbeds, VisualEmbeds
from vlmopt.pruning.dart import longest

E = torch.tensor([[3, 0], [2.9, 0.3], [0, 1], [0.2, 1], [-1, 0], [-1, 0.2], [1, 1], [0, -2]])
T = torch.tensor([[0.0, 1], [1, -1], [0.5, 0.5]])


def test_golden():
    tokens = embedded(E, signals={TextEmbeds(): T})
    assert longest(E, 3).tolist() == [1, 0, 6]
    assert longest(T, 1).tolist() == [1]
    assert keep_of(DART(keep_tokens=6, pivots_image=2, pivots_text=1), tokens) == [0, 1, 2, 3, 4, 5]
    assert keep_of(DART(keep_tokens=6, pivots_image=2, pivots_text=0), tokens) == [0, 1, 2, 4, 5, 7]


@pytest.mark.parametrize("k", [1, 2, 3, 5, 7, 30])
@pytest.mark.parametrize("pivots", [(4, 4), (0, 4), (4, 0), (9, 1)])
def test_budgets_are_exact_whatever_the_pivots(k, pivots):
    method = DART(keep_tokens=k, pivots_image=pivots[0], pivots_text=pivots[1])
    keep = method.select(visual([(1, 5, 6)])).keep
    assert len(keep) == k
    assert (keep.diff() > 0).all()


def test_pivots_of_the_image_stay():
    tokens = visual([(1, 5, 6)])
    stay = longest(tokens.signals[VisualEmbeds()], 4).tolist()
    assert set(stay) <= set(keep_of(DART(keep_tokens=6), tokens))
    assert keep_of(DART(keep_tokens=3), tokens) == sorted(stay[:3])


def test_equal_tokens_go_in_order():
    assert keep_of(DART(keep_tokens=9), embedded(torch.ones(100, 8))) == list(range(9))
    assert keep_of(DART(keep_tokens=9), embedded(torch.zeros(100, 8))) == list(range(9))


def test_without_text_the_image_guides_alone():
    silent = {TextEmbeds(): torch.zeros(0, 8)}
    rows = visual([(1, 5, 6)]).signals[VisualEmbeds()]
    assert keep_of(DART(keep_tokens=9), embedded(rows, signals=silent)) == keep_of(
        DART(keep_tokens=9, pivots_text=0), embedded(rows)
    )
    with pytest.raises(ValueError, match=r"dart: no text .* pivots_image >= 1"):
        DART(keep_tokens=9, pivots_image=0).select(embedded(rows, signals=silent))


def test_settings():
    with pytest.raises(ValueError, match="pivots_image=0 and pivots_text=0"):
        DART(keep_ratio=0.5, pivots_image=0, pivots_text=0)
    assert DART(keep_ratio=0.5).query_aware
    assert not DART(keep_ratio=0.5, pivots_text=0).query_aware

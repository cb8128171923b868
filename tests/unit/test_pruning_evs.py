"""EVS: what changes between frames stays, and the first frame."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cosine_similarity

from tests.support.embedded import embedded, keep_of, visual
from vlmopt.pruning import VisualEmbeds
from vlmopt.pruning.evs import EVS


def static(t, h, w, d=8, seed=0):
    return torch.randn(h * w, d, generator=torch.Generator().manual_seed(seed)).repeat(t, 1)


def test_of_a_static_video_the_first_frame_stays():
    tokens = embedded(static(4, 4, 4), (4, 4, 4))
    assert keep_of(EVS(keep_tokens=16), tokens) == list(range(16))
    assert keep_of(EVS(keep_ratio=0.25, paper_compat=True), tokens) == list(range(16))
    assert keep_of(EVS(keep_tokens=20), tokens)[:16] == list(range(16))


def test_what_moves_stays_before_what_does_not():
    z = static(5, 3, 4).view(5, 12, 8)
    z[1:, 7] = torch.randn(4, 8, generator=torch.Generator().manual_seed(9))  # one cell changes in every frame
    tokens = embedded(z.reshape(60, 8), (5, 3, 4))
    moving = [7 + 12 * t for t in range(1, 5)]
    chosen = EVS(keep_tokens=16).select(tokens)
    assert chosen.keep.tolist() == [*range(12), *moving]
    assert chosen.stats == {"spread": False}
    assert chosen.scores[:12].tolist() == [2.0] * 12
    assert torch.allclose(chosen.scores[moving[1]], 1 - cosine_similarity(z[2, 7], z[1, 7], 0), atol=1e-6)


@pytest.mark.parametrize("grid", [(1, 4, 4), (4, 4, 4), (7, 3, 5), (16, 2, 2)])
@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 0.75, 0.9, 0.99])
def test_as_released_the_count_follows_the_formula(grid, rate):
    t, h, w = grid
    method = EVS(keep_ratio=1 - rate, paper_compat=True)
    assert method.adaptive  # the budget is no promise here
    assert not EVS(keep_ratio=1 - rate).adaptive
    keep = keep_of(method, visual([grid]))
    assert len(keep) == max(h * w, int(t * h * w * (1 - rate)))
    assert keep[: h * w] == list(range(h * w))
    assert len(keep_of(EVS(keep_ratio=1 - rate), visual([grid]))) == EVS(keep_ratio=1 - rate).budget(t * h * w)


def test_equal_changes_go_to_the_lowest_index():
    z = torch.tensor([[1.0, 0], [0, 1]]).repeat_interleave(4, 0).repeat(3, 1)  # every cell turns by 90 degrees
    assert keep_of(EVS(keep_tokens=7), embedded(z, (6, 2, 2))) == list(range(7))


def test_a_budget_below_the_first_frame_is_spread_over_it():
    chosen = EVS(keep_tokens=4).select(visual([(4, 8, 8)]))
    assert chosen.keep.tolist() == [y * 8 + x for y in (1, 5) for x in (1, 5)]
    assert chosen.stats == {"spread": True}
    image = EVS(keep_ratio=0.25).select(visual([(1, 8, 8)]))  # all of an image is new
    assert image.keep.tolist() == [y * 8 + x for y in (0, 2, 4, 6) for x in (0, 2, 4, 6)]
    assert image.stats == {"spread": True}
    assert len(keep_of(EVS(keep_ratio=0.25, paper_compat=True), visual([(1, 8, 8)]))) == 64


def test_two_videos_share_one_pool_or_their_own():
    z = torch.cat([static(3, 2, 2), torch.randn(12, 8, generator=torch.Generator().manual_seed(3))])
    tokens = visual([(3, 2, 2), (3, 2, 2)], {VisualEmbeds(): z})
    pooled = EVS(keep_tokens=14).select(tokens)
    assert tokens.item[pooled.keep].bincount().tolist() == [4, 10]
    own = EVS(keep_tokens=14, allocation="proportional").select(tokens)
    assert tokens.item[own.keep].bincount().tolist() == [7, 7]
    with pytest.raises(ValueError, match="segment"):
        EVS(keep_ratio=0.5, segment="frame")

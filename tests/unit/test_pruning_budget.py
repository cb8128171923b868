"""How a budget is shared between images and frames: who gets what."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from vlmopt.pruning import Pixels, VisualEmbeds, VisualTokens
from vlmopt.pruning.base import ScoreSelector
from vlmopt.pruning.budget import ALLOCATIONS, allocate, distinctiveness, segments, temporal_change


@dataclass(frozen=True, kw_only=True)
class Brightest(ScoreSelector):
    """Ranks by the first value of the embeddings."""

    def score(self, tokens: VisualTokens) -> Tensor:
        return tokens.signals[VisualEmbeds()][:, 0]


def visual(grids, embeds=None, seed=0) -> VisualTokens:
    """Whole grids of random tokens, or of the given ones; a grid of None is a span of 5 tokens without one."""
    known = [torch.cartesian_prod(*map(torch.arange, g)).reshape(-1, 3) if g else torch.full((5, 3), -1) for g in grids]
    lengths = tuple(map(len, known))
    n, coords = sum(lengths), torch.cat(known)
    item = torch.repeat_interleave(torch.arange(len(grids)), torch.tensor(lengths))
    z = torch.randn(n, 6, generator=torch.Generator().manual_seed(seed)) if embeds is None else embeds
    return VisualTokens(n, torch.arange(n), item, coords, tuple(grids), {VisualEmbeds(): z}, 0, lengths)


def kept(method, tokens):
    """How many tokens of every image stay."""
    return tokens.item[method.select(tokens).keep].bincount(minlength=len(tokens.grids)).tolist()


@pytest.mark.parametrize("allocation", ALLOCATIONS)
@pytest.mark.parametrize("segment", ["image", "frame"])
def test_every_allocation_is_exact(allocation, segment):
    tokens = visual([(1, 4, 5), (3, 2, 4), None, (1, 1, 1)])
    for k in range(1, 51):
        method = Brightest(keep_tokens=k, allocation=allocation, segment=segment)
        keep = method.select(tokens).keep
        assert len(keep) == k
        assert (keep.diff() > 0).all()


def test_segments():
    tokens = visual([(1, 1, 2), (3, 1, 2), None])

    def split(kind, allocation="proportional"):
        return [part.tolist() for part in segments(tokens, kind, allocation)]

    assert split("image") == [[0, 1], [2, 3, 4, 5, 6, 7], [8, 9, 10, 11, 12]]
    assert split("frame") == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9, 10, 11, 12]]
    assert split("frame", "global") == [list(range(13))]
    assert [part.tolist() for part in segments(visual([(1, 2, 2)]), "image", "equal")] == [[0, 1, 2, 3]]
    late = tokens.subset(torch.tensor([0, 6, 7]))  # images and frames without any token left are not segments
    assert [part.tolist() for part in segments(late, "frame", "equal")] == [[0], [1, 2]]


@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_one_segment_is_a_plain_selection(allocation):
    tokens = visual([(1, 5, 6)])
    best = tokens.signals[VisualEmbeds()][:, 0].topk(9).indices.sort().values
    for segment in ("image", "frame"):
        method = Brightest(keep_tokens=9, allocation=allocation, segment=segment)
        assert torch.equal(method.select(tokens).keep, best)


def test_images_share_in_proportion_equally_or_in_one_pool():
    z = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    z[30:, 0] += 10  # the small image outshines the large one
    tokens = visual([(1, 5, 6), (1, 2, 5)], z)
    assert kept(Brightest(keep_tokens=8), tokens) == [6, 2]
    assert kept(Brightest(keep_tokens=8, allocation="equal"), tokens) == [4, 4]
    assert kept(Brightest(keep_tokens=30, allocation="equal"), tokens) == [20, 10]
    assert kept(Brightest(keep_tokens=8, allocation="global"), tokens) == [0, 8]
    assert kept(Brightest(keep_tokens=8, allocation="first_whole"), tokens) == [8, 0]
    assert kept(Brightest(keep_tokens=33, allocation="first_whole"), tokens) == [30, 3]
    assert kept(Brightest(keep_tokens=8, min_per_segment=4), tokens) == [4, 4]
    assert kept(Brightest(keep_tokens=1, min_per_segment=4), tokens) == [1, 0]
    small = visual([(1, 5, 6), (1, 1, 1)])
    assert kept(Brightest(keep_tokens=6), small) == [5, 1]  # nobody goes empty
    assert kept(Brightest(keep_tokens=6, min_per_segment=0), small) == [6, 0]


def test_order_of_the_images_does_not_matter():
    grids, z = [(1, 4, 5), (1, 3, 3), (1, 6, 7)], torch.randn(71, 6, generator=torch.Generator().manual_seed(1))
    parts = z.split([20, 9, 42])
    for allocation in ("proportional", "temporal_change", "distinctiveness"):
        method = Brightest(keep_tokens=17, allocation=allocation)
        counts = kept(method, visual(grids, z))
        turned = kept(method, visual([grids[i] for i in (2, 0, 1)], torch.cat([parts[i] for i in (2, 0, 1)])))
        assert turned == [counts[i] for i in (2, 0, 1)]


def test_frames_share_and_the_first_may_stay_whole():
    tokens = visual([(4, 3, 4)])
    z = tokens.signals[VisualEmbeds()]
    method = Brightest(keep_tokens=20, segment="frame")

    def frames(method):
        return tokens.frame[method.select(tokens).keep].bincount(minlength=4).tolist()

    assert frames(method) == [5, 5, 5, 5]
    assert frames(dataclasses.replace(method, allocation="first_whole")) == [12, 3, 3, 2]
    keep = method.select(tokens).keep
    best = torch.cat([frame[:, 0].topk(5).indices.sort().values + 12 * i for i, frame in enumerate(z.split(12))])
    assert torch.equal(keep, best)


def test_an_image_of_padding_alone_gets_nothing_as_long_as_it_is_no_candidate():
    tokens = visual([(1, 2, 4), (1, 2, 4)])
    pixels = torch.randn(16, 3, 8, generator=torch.Generator().manual_seed(0))
    pixels[[0, 4, 8, 12]] = 0  # a bar on the left of each
    tokens = dataclasses.replace(tokens, signals={**tokens.signals, Pixels(): pixels})
    keep = Brightest(keep_tokens=12, padding="square").select(tokens).keep
    assert keep.tolist() == [i for i in range(16) if i % 4]
    assert kept(Brightest(keep_tokens=4, padding="square"), tokens) == [2, 2]


def test_row_separators_come_last_and_are_in_no_segment():
    tokens = visual([(1, 3, 4), (1, 3, 4)])
    coords = tokens.coords.clone()
    coords[3::4] = -1
    tokens = dataclasses.replace(tokens, coords=coords)
    for k in range(1, 25):
        keep = Brightest(keep_tokens=k).select(tokens).keep
        assert len(keep) == k
        assert int((keep % 4 == 3).sum()) == max(k - 18, 0)
        assert abs(int((keep < 12).sum()) - k / 2) <= (1 if k <= 18 else 3)
    patches = [i for i in range(24) if i % 4 < 3]
    assert Brightest(keep_tokens=20).select(tokens).keep.tolist() == sorted([3, 7, *patches])


# ---- what frames and images are worth


def changes(tokens):
    """`temporal_change` in loops."""
    z = tokens.signals[VisualEmbeds()]
    where = {(int(i), *map(int, c)): j for j, (i, c) in enumerate(zip(tokens.item, tokens.coords, strict=True))}
    out = []
    for (i, t, y, x), j in where.items():
        before = where.get((i, t - 1, y, x)) if t > 0 else None
        out.append(2.0 if before is None else 1 - float(cosine_similarity(z[j], z[before], 0)))
    return torch.tensor(out)


def test_change_is_measured_against_the_same_cell_of_the_frame_before():
    tokens = visual([(3, 2, 4), (1, 3, 3), (4, 3, 2)])
    assert torch.allclose(temporal_change(tokens), changes(tokens), atol=1e-5)
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):  # cells that left earlier have no successor
        left = tokens.subset((torch.rand(len(tokens), generator=generator) < 0.6).nonzero()[:, 0])
        assert torch.allclose(temporal_change(left), changes(left), atol=1e-5)
    assert temporal_change(visual([None])).tolist() == [2.0] * 5


def test_tokens_without_a_place_are_nobody_s_predecessors():
    tokens = visual([(2, 2, 2), None])
    left = tokens.subset(torch.tensor([0, 2, 3, 4, 5, 6, 7, 8, 9]))  # cell (0, 0, 1) is gone
    change = temporal_change(left)
    assert change[4] == 2
    assert change[-2:].tolist() == [2.0, 2.0]


def test_frames_with_change_get_more():
    z = torch.randn(12, 6, generator=torch.Generator().manual_seed(0)).repeat(4, 1).view(4, 12, 6)
    z[2, :6] = torch.randn(6, 6, generator=torch.Generator().manual_seed(5))  # half of frame 2 is different
    tokens = visual([(4, 3, 4)], z.reshape(48, 6))
    split = segments(tokens, "frame", "temporal_change")
    shares = allocate(tokens, split, 24, "temporal_change", 1)
    assert sum(shares) == 24
    assert shares[1] == 1  # nothing changed: the minimum
    assert shares[0] > shares[2] > 1
    assert shares[2] - shares[3] in (0, 1)  # there and back again: equal, but for one token that cannot be split
    assert allocate(tokens, split, 24, "temporal_change", 0)[1] == 0


def test_distinct_images_get_more():
    z = torch.randn(36, 6, generator=torch.Generator().manual_seed(0)) * 0.1 + 1
    z[24:] = -z[24:]
    tokens = visual([(1, 3, 4)] * 3, z)
    split = segments(tokens, "image", "distinctiveness")
    assert torch.allclose(torch.tensor(distinctiveness(tokens, split)), torch.tensor([8.0, 8, 20]))  # 12 times 2/3, 5/3
    assert allocate(tokens, split, 14, "distinctiveness", 1) == [3, 3, 8]
    assert distinctiveness(visual([(1, 2, 3)] * 2, torch.ones(12, 4)), list(torch.arange(12).split(6))) == [6.0, 6.0]

"""Methods for video on numbers worked out by hand: VidCom2, FastVID, and EVS with DyCoke's reference."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.nn.functional import normalize

from tests.support.embedded import embedded, keep_of, visual
from vlmopt.pruning import EVS, FastVID, VidCom2, VisionAttention, VisualEmbeds
from vlmopt.pruning.budget import distinctiveness, segments, temporal_change
from vlmopt.pruning.evs import BACK
from vlmopt.pruning.fastvid import ends, split
from vlmopt.pruning.uniqueness import calm, typical, weights

AAB = torch.eye(4)[[0, 0, 0, 1, 0, 0, 0, 1, 2, 2, 3, 0]]  # three frames of four cells


def circle(*degrees):
    angle = torch.deg2rad(torch.tensor(degrees, dtype=torch.float32))
    return torch.stack([angle.cos(), angle.sin()], 1)


def doubled(rows):
    """Rows [n, d] followed by d channels that vary more, so that exactly the first d are the calm half."""
    noise = 10 * torch.randn(rows.shape, generator=torch.Generator().manual_seed(0))
    return torch.cat([rows, noise], 1)


def test_vidcom2_golden():
    frames = list(torch.arange(12).split(4))
    whole = typical(AAB, AAB.mean(0))
    own = torch.cat([typical(AAB[f], AAB[f].mean(0)) for f in frames])
    first, last = [3.6335, 3.6335, 3.6335, 1.8261], [1.8261, 1.8261, 1.6552, 3.6335]
    assert torch.allclose(whole, torch.tensor([*first, *first, *last]), atol=6e-5)
    sums = [7.8100, 7.8100, 7.8100, 3.5919] * 2 + [4.9484, 4.9484, 3.7252, 5.7035]
    assert torch.allclose(whole + own, torch.tensor(sums), atol=1e-4)
    assert weights(whole, frames) == pytest.approx([2 / 3, 2 / 3, 5 / 3])
    tokens = embedded(doubled(AAB), (3, 2, 2))
    assert torch.equal(calm(doubled(AAB)) @ calm(doubled(AAB)).T, AAB @ AAB.T)
    assert keep_of(VidCom2(keep_tokens=6), tokens) == [0, 3, 7, 8, 9, 10]
    released = VidCom2(keep_tokens=6, paper_compat=True)
    assert keep_of(released, tokens) == [3, 7, 8, 9, 10]  # 1, 1, 3: each rounded by itself
    assert released.adaptive


def test_distinctiveness_is_that_of_vidcom2():
    tokens = embedded(doubled(AAB), (3, 2, 2))
    found = distinctiveness(tokens, segments(tokens, "frame", "distinctiveness"))
    assert torch.allclose(torch.tensor(found), torch.tensor([8 / 3, 8 / 3, 20 / 3]), atol=1e-4)


def test_vidcom2_of_an_image_keeps_what_is_least_typical():
    rows = torch.ones(20, 6) + 0.01 * torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
    rows[[4, 13]] = -1.0
    assert keep_of(VidCom2(keep_tokens=2), embedded(rows, (1, 4, 5))) == [4, 13]
    assert keep_of(VidCom2(keep_tokens=3), embedded(torch.ones(20, 6), (1, 4, 5))) == [0, 1, 2]
    assert keep_of(VidCom2(keep_tokens=3), embedded(torch.zeros(20, 1), (1, 4, 5))) == [0, 1, 2]


@pytest.mark.parametrize("k", [1, 2, 5, 11, 24])
@pytest.mark.parametrize("method", [VidCom2(keep_tokens=1), FastVID(keep_tokens=1)], ids=lambda m: m.name)
def test_frames_of_unequal_size(method, k):
    """What a first cut left of a video: some frames are smaller than others, one is gone."""
    whole = visual([(4, 2, 3)])
    left = torch.tensor([0, 1, 2, 3, 4, 5, 7, 12, 13, 15, 16])
    for tokens in (whole, whole.subset(left)):
        keep = dataclasses.replace(method, keep_tokens=k).select(tokens).keep
        assert len(keep) == min(k, len(tokens))


def test_dycoke_golden():
    """Two cells, six frames: frames 0 and 4 whole, 1 and 2 against 0, 3 against 2, 5 against 4."""
    degrees = (0, 90, 10, 90, 40, 100, 40, 160, 0, 90, 5, 170)
    tokens = embedded(circle(*degrees), (6, 1, 2))
    want = [2, 2, 0.0152, 0, 0.2340, 0.0152, 0, 0.5, 2, 2, 0.0038, 0.8264]
    assert torch.allclose(temporal_change(tokens, BACK["dycoke"]), torch.tensor(want), atol=6e-5)
    assert keep_of(EVS(keep_tokens=7, reference="dycoke"), tokens) == [0, 1, 4, 7, 8, 9, 11]
    assert keep_of(EVS(keep_tokens=7), tokens) == [0, 1, 4, 7, 8, 9, 11]


def test_dycoke_is_not_what_evs_released():
    with pytest.raises(ValueError, match="reference='dycoke'"):
        EVS(keep_ratio=0.5, reference="dycoke", paper_compat=True)


def test_dycoke_skips_a_reference_that_has_left():
    tokens = embedded(circle(0, 90, 10, 90, 40, 100), (3, 1, 2))
    left = tokens.subset(torch.tensor([1, 2, 3, 4, 5]))  # cell 0 of frame 0 is gone
    found = temporal_change(left, BACK["dycoke"])
    assert torch.allclose(found, torch.tensor([2, 2, 0, 2, 0.0152]), atol=6e-5)


def test_fastvid_cuts_where_frames_change():
    means = circle(0, 5, 8, 60, 62, 64)
    alike = (means[1:] * means[:-1]).sum(1)
    assert torch.allclose(alike, torch.tensor([0.9962, 0.9986, 0.6157, 0.9994, 0.9994]), atol=6e-5)
    assert ends(means, 2, 0.9).nonzero()[:, 0].tolist() == [2]
    assert ends(means, 4, 0.9).nonzero()[:, 0].tolist() == [0, 1, 2]
    assert ends(means, 1, 0.9).nonzero()[:, 0].tolist() == [2]
    assert ends(means, 8, -1.0).all()  # fewer frames than scenes: each is one
    assert not len(ends(means[:1], 8, 0.9))
    frames = list(torch.arange(6).split(1))
    assert [len(scene) for scene in split(frames, ends(means, 4, 0.9).tolist())] == [1, 1, 1, 3]


def test_fastvid_shares_a_scene_between_attended_and_merged():
    """Four frames of 20 alike in the mean: 8 peaks, all in the first, and 12 attended tokens, 3 a frame."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(20, 8, generator=generator).repeat(4, 1) + 3
    attention = torch.rand(80, generator=generator)
    tokens = embedded(rows, (4, 4, 5), {VisionAttention(-2): attention})
    chosen = FastVID(keep_ratio=0.25, scenes=1).select(tokens)
    assert len(chosen.keep) == 20
    assert chosen.stats["scenes"] == 1
    assert chosen.stats["contextual"] == 8
    assert tokens.coords[chosen.keep, 0].bincount().tolist() == [11, 3, 3, 3]
    for frame in range(1, 4):
        mine = attention[20 * frame : 20 * frame + 20].topk(3).indices.sort().values + 20 * frame
        assert chosen.keep[chosen.keep // 20 == frame].tolist() == mine.tolist()
    assert (chosen.written.slots < 20).all()
    assert torch.isin(chosen.written.slots, chosen.keep).all()
    dropped = torch.ones(80, dtype=torch.bool).index_fill(0, chosen.keep, False)
    assert ((chosen.written.origin >= 0) == dropped).all()


def test_fastvid_merges_once_per_frame_with_peaks():
    method = FastVID(keep_ratio=0.5)
    rows = torch.tensor([[2.0, 0], [0, 1], [1, 1], [3, 1], [2, 4]])
    peaks, rest = torch.tensor([0]), torch.tensor([2, 3, 4])
    merged, counts = method.merge(rows, peaks, rest)
    assert torch.allclose(merged, torch.tensor([[2, 0.8]]))
    assert counts.tolist() == [3]
    merged, counts = method.merge(rows, torch.tensor([0, 1]), torch.tensor([3]))
    assert torch.allclose(merged, torch.tensor([[2.4, 0.4], [0, 1]]))
    assert counts.tolist() == [1, 0]  # nothing went into the second: it stays what it is
    one = FastVID(keep_ratio=0.5, beta=0).merge(rows, torch.tensor([0]), torch.tensor([3]))[0]
    assert torch.allclose(one, torch.tensor([[2.5, 0.5]]))


def test_fastvid_of_an_image():
    tokens = visual([(1, 4, 5)])
    chosen = FastVID(keep_tokens=10).select(tokens)
    attention = tokens.signals[VisionAttention(-2)]
    assert len(chosen.keep) == 10
    assert torch.isin(attention.topk(6).indices, chosen.keep).all()
    flat = embedded(torch.ones(20, 4), (1, 4, 5), {VisionAttention(-2): torch.ones(20)})
    assert FastVID(keep_tokens=10).select(flat).keep.tolist() == list(range(10))
    assert FastVID(keep_tokens=10, context=0).select(tokens).written is None


def test_embeddings_of_low_precision_are_compared_in_fp32():
    rows = normalize(visual([(3, 4, 5)]).signals[VisualEmbeds()], dim=1).bfloat16()
    for method in (VidCom2(keep_tokens=20), FastVID(keep_tokens=20), EVS(keep_tokens=30, reference="dycoke")):
        low, high = (visual([(3, 4, 5)], {VisualEmbeds(): x}) for x in (rows, rows.float()))
        assert keep_of(method, low) == keep_of(method, high)
        written = method.select(low).written
        assert written is None or written.embeds.dtype == torch.bfloat16

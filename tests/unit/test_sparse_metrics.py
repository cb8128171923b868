"""Recall, density, yardsticks and images of a plan, against masks written out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import pad

from tests.support.prefills import LAYOUTS, layer, mask_of, masked, run, topics, visible
from tests.support.yardsticks import KINDS, block_mass, yardstick
from vlmopt.kernels.draw_head import class_major, draw_head, every_block, own_layout
from vlmopt.kernels.metrics import causal_cells, density, kept_cells, output_error, recall, recall_summary, sample_rows
from vlmopt.kernels.patterns import AShape, VerticalSlash
from vlmopt.kernels.patterns.blocks import block_grid
from vlmopt.kernels.patterns.minference_blocks import MInferenceBlocks
from vlmopt.kernels.patterns.pbs_attn import PBSAttn
from vlmopt.kernels.patterns.psa import PSA
from vlmopt.kernels.patterns.x_attention import XAttention
from vlmopt.kernels.sheet import origin
from vlmopt.kernels.sparse_attention.index import Launch, SparseIndex

SIZE = {"tile": 32, "run": 32}
PATTERNS = {
    "blocks": XAttention(threshold=0.5, stride=8, **SIZE),
    "runs and columns": VerticalSlash(vertical=30, slash=100, probe=32, **SIZE),
    "permuted": PBSAttn(threshold=0.5, segment=64, probe=32, **SIZE),
    "static": AShape(sink=16, local=40, **SIZE),
}


def dense_weights(prefill):
    logits = prefill.q[:, prefill.heads].double() @ prefill.k[:, prefill.key_heads].double().mT * prefill.scale
    return logits.masked_fill(~visible(prefill), -torch.inf).softmax(-1).nan_to_num(0)


def by_blocks(cells, tile, width):
    padded = pad(cells, (0, -cells.shape[3] % width, 0, -cells.shape[2] % tile))
    return padded.unflatten(3, (-1, width)).unflatten(2, (-1, tile)).sum((3, 5))


def columns(prefill, stride, phase):
    """A plan of arithmetic columns and nothing else."""
    shape = (prefill.batch, len(prefill.heads), -(-prefill.rows // 64))
    ptr = torch.zeros(*shape[:2], shape[2] + 1, dtype=torch.long)
    grid = torch.tensor([stride, phase, 1], dtype=torch.int).expand(*shape[:2], 3)
    empty = torch.zeros(0, dtype=torch.int)
    return [Launch(SparseIndex(64, 64, ptr, empty, torch.zeros(shape, dtype=torch.int), grid=grid))]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", PATTERNS)
def test_recall_is_the_dense_attention_on_kept_keys(name, layout):
    prefill = layer(**LAYOUTS[layout])
    launches = PATTERNS[name].build(prefill)
    kept = (dense_weights(prefill) * mask_of(prefill, launches[0])).sum(-1).float()
    measured = recall(prefill, launches)
    real = prefill.real[:, None].expand_as(measured)
    assert torch.allclose(measured[real], kept[real], atol=1e-5)
    assert measured[~real].isnan().all()
    rows = sample_rows(prefill, random=20, last=5, seed=3)
    some = measured.gather(2, rows[:, None].expand(-1, measured.shape[1], -1))
    assert torch.equal(recall(prefill, launches, rows), some)


def test_recall_caps_logits_as_the_model_does():
    prefill = replace(layer(rows=200, scale=8.0), softcap=2.0)
    launches = PATTERNS["static"].build(prefill)
    logits = prefill.q.double() @ prefill.k[:, prefill.key_heads].double().mT * prefill.scale
    weights = (2 * (logits / 2).tanh()).masked_fill(~visible(prefill), -torch.inf).softmax(-1)
    kept = (weights * mask_of(prefill, launches[0])).sum(-1).float()
    assert torch.allclose(recall(prefill, launches), kept, atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", PATTERNS)
def test_cells_are_counted_as_the_mask_has_them(name, layout):
    prefill = layer(**LAYOUTS[layout])
    launches = PATTERNS[name].build(prefill)
    mask = mask_of(prefill, launches[0]).float()
    assert torch.equal(kept_cells(prefill, launches, 32, 16), by_blocks(mask, 32, 16))
    every = by_blocks(visible(prefill).float(), 32, 16)
    assert torch.equal(causal_cells(prefill, 32, 16).float(), every)
    measured = density(prefill, launches, 32, 16)
    share = mask.sum((0, 2, 3)) / every.sum()
    assert torch.allclose(measured.cells, share, atol=1e-6)
    touched = (by_blocks(mask, 32, 16) > 0).sum((0, 2, 3)) / (every > 0).sum()
    assert torch.allclose(measured.blocks, touched)
    whole = density(prefill, every_block(prefill, 32, 32), 32, 16)
    assert (whole.blocks == 1).all()
    assert (whole.cells == 1).all()


def test_a_map_can_be_laid_out_in_another_order():
    prefill = layer(rows=200, batch=1)
    launches = PATTERNS["blocks"].build(prefill)
    rows, keys = torch.randperm(200), torch.randperm(200)
    mask = mask_of(prefill, launches[0])[:, :, rows][..., keys].float()
    assert torch.equal(kept_cells(prefill, launches, 32, 32, rows=rows, keys=keys), by_blocks(mask, 32, 32))


def test_a_pooled_key_counts_once():
    prefill = layer(rows=512, batch=1, query_heads=2)
    pattern = PSA(tile=32, run=16, block=128, stride=8, energy=(0, 0, 0, 1), likeness=(-1, -1, -1), exact_tail=0)
    levels = pattern.block_levels(prefill)
    assert set(levels.unique().tolist()) == {0, 1, 8}
    expected = torch.where(levels == 8, 32 * 16, 0)
    kept = kept_cells(prefill, pattern.build(prefill), 32, 128)
    assert torch.equal(kept[levels == 8], expected[levels == 8].float())
    assert torch.equal(kept[levels == 1], causal_cells(prefill, 32, 128).expand_as(levels)[levels == 1].float())


def test_summaries_leave_padding_out():
    values = torch.tensor([[[0.2, 0.4, 1.0, torch.nan]], [[0.6, 0.8, torch.nan, torch.nan]]])
    summary = recall_summary(values)
    assert torch.allclose(summary["mean"], torch.tensor([0.6]))
    assert torch.allclose(summary["min"], torch.tensor([0.2]))
    assert torch.allclose(summary["p5"], torch.tensor([0.24]))


def test_output_error_is_relative_to_the_exact_output():
    exact = torch.randn(2, 3, 50, 8)
    assert torch.allclose(output_error(exact * 1.1, exact), torch.full((2, 3), 0.1), atol=1e-5)
    prefill = layer()
    sparse, dense = run(prefill, PATTERNS["blocks"].build(prefill)), masked(prefill, visible(prefill))
    assert (output_error(run(prefill, every_block(prefill, 32, 32)), dense) < 1e-5).all()
    assert (output_error(sparse, dense) > 0.01).all()


def test_sampled_rows_are_real_and_hold_the_last_ones():
    prefill = layer(rows=270, q_len=torch.tensor([270, 101]), k_len=torch.tensor([270, 101]))
    rows = sample_rows(prefill, random=30, last=8)
    assert rows.shape == (2, 38)
    assert (rows < prefill.row_end[:, None]).all()
    assert (rows >= 0).all()
    assert rows[1, -8:].sort().values.tolist() == list(range(93, 101))
    assert torch.equal(rows, sample_rows(prefill, random=30, last=8))
    assert sample_rows(prefill).shape == (2, 270)
    left = layer(k_start=torch.tensor([0, 100]))
    assert (sample_rows(left, random=99, last=8)[1] >= 100).all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_dense_attention_by_block_equals_the_weights(layout):
    prefill = layer(**LAYOUTS[layout])
    assert torch.allclose(block_mass(prefill, 32, 16), by_blocks(dense_weights(prefill), 32, 16).float(), atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", ["whole", "chunk", "left"])
def test_yardsticks_have_the_density_that_is_asked(kind, layout):
    prefill = layer(**LAYOUTS[layout])
    every = causal_cells(prefill, 32, 32).sum((2, 3))
    for share in (0.2, 0.5, 1.0):
        launches = yardstick(kind, prefill, (share * every).expand(-1, 4), 32, 32)
        cells = kept_cells(prefill, launches, 32, 32).sum((2, 3))
        assert ((cells - share * every).abs() <= 32 * 32 / 2).all()
    if kind == "random":
        one, same, other = (yardstick(kind, prefill, (0.6 * every).expand(-1, 4), 32, 32, seed=s) for s in (1, 1, 2))
        kept = kept_cells(prefill, one, 32, 32) > 0
        assert kept[block_grid(prefill, 32, 32).forced.expand_as(kept)].all()
        assert torch.equal(one[0].index.run_start, same[0].index.run_start)
        assert not torch.equal(one[0].index.run_start, other[0].index.run_start)


def test_no_choice_of_blocks_beats_the_oracle_and_chance_is_below():
    prefill, _ = topics(rows=1024, d=16)
    for pattern in (PATTERNS["blocks"], MInferenceBlocks(blocks=4, **SIZE), PATTERNS["static"]):
        launches = pattern.build(prefill)
        cells = kept_cells(prefill, launches, 32, 32).sum((2, 3))
        # Blocks on the diagonal are half a block: the oracle may end up to half a block short of the same number.
        reached = {kind: recall(prefill, yardstick(kind, prefill, cells + 512, 32, 32)).mean() for kind in KINDS}
        own = recall(prefill, launches).mean()
        assert reached["oracle"] >= own
        if pattern is PATTERNS["blocks"]:
            assert own > reached["random"]
            assert own > reached["a_shape"]
    with pytest.raises(ValueError, match="oracle, random, a_shape; got 'best'"):
        yardstick("best", prefill, cells)


def test_a_shape_keeps_the_sink_and_the_nearest_blocks():
    prefill = layer(rows=256, batch=1)
    distance = torch.arange(8)[:, None] - torch.arange(8)
    expected = ((distance >= 0) & (distance <= 3)) | ((torch.arange(8) == 0) & (distance >= 0))
    cells = (causal_cells(prefill, 32, 32) * expected).sum((2, 3)).expand(-1, 4)
    kept = kept_cells(prefill, yardstick("a_shape", prefill, cells, 32, 32), 32, 32) > 0
    assert torch.equal(kept, expected.expand(1, 4, 8, 8))


def test_class_major_order_puts_the_phase_last():
    order = class_major(torch.arange(50), 7, 3)
    assert order.sort().values.tolist() == list(range(50))
    assert (order[-7:] % 7 == 3).all()
    assert (order[:7] % 7 == 4).all()
    assert order[:8].diff()[:6].eq(7).all()


def test_an_image_shows_what_is_read_before_and_after_the_permutation():
    prefill = layer(rows=1024, batch=1)
    launches = columns(prefill, 64, 5)
    (layout,) = own_layout(prefill, launches, 2)
    rows, keys = layout.rows, layout.keys
    assert torch.equal(rows, keys)
    natural = kept_cells(prefill, launches, 64, 64)
    permuted = kept_cells(prefill, launches, 64, 64, rows=rows, keys=keys)
    assert (natural[0, 0] > 0).sum() == 136  # every block below the diagonal
    assert (permuted[0, 0] > 0).sum() == 16  # one column of blocks
    assert natural.sum() == permuted.sum()
    blocks = MInferenceBlocks(blocks=2).build(prefill)[0].index  # runs beside the lines are not laid out with them
    both = [replace(launches[0], index=replace(blocks, grid=launches[0].index.grid))]
    assert torch.equal(kept_cells(prefill, own_layout(prefill, both, 2)[0].plan), natural)
    image = np.asarray(draw_head(prefill, launches, 2, size=256))
    before, after = (image[y : y + 256, x : x + 256].astype(int) for x, y in (origin(0, 256), origin(1, 256)))
    blue = [(panel[..., 2] - panel[..., 0] > 40).mean() for panel in (before, after)]
    assert blue[0] > 0.5 > 0.07 > blue[1] > 0.05
    assert before[4, 250].tolist() == [232, 232, 236]  # the future
    assert after[130, 10].tolist() == [255, 255, 255]  # left out


def test_an_image_of_whole_blocks_has_one_panel():
    prefill = layer(rows=512, q_len=torch.tensor([512, 100]), k_len=torch.tensor([512, 100]))
    launches = [PATTERNS["blocks"].build(prefill)[0]]
    assert own_layout(prefill, launches, 0) == []
    image = draw_head(prefill, launches, 3, sample=1, tile=32, run=32, size=128)
    x, y = origin(0, 128)
    assert image.width < origin(1, 128)[0]
    pixels = np.asarray(image)[y : y + 128, x : x + 128]
    assert (pixels[40:] == (232, 232, 236)).all()  # padding
    (layout,) = own_layout(prefill, PATTERNS["permuted"].build(prefill), 3)
    assert layout.rows is None
    assert layout.keys.sort().values.tolist() == list(range(512))


def test_only_the_heads_of_the_plan_are_measured():
    prefill = layer(rows=256)
    some = replace(prefill, heads=torch.tensor([1, 3]))
    launches, all_launches = (PATTERNS["blocks"].build(p) for p in (some, prefill))
    assert torch.allclose(recall(some, launches), recall(prefill, all_launches)[:, [1, 3]], atol=1e-5)
    assert torch.equal(kept_cells(some, launches), kept_cells(prefill, all_launches)[:, [1, 3]])

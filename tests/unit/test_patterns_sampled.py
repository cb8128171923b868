"""`sampled` holds what it promises of every structure, with few cells where blocks can be few, or is dense."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.support import planted
from tests.support.kept import SMALL, check, prefill, seen, shaped, visible
from vlmopt.kernels.metrics import density, recall
from vlmopt.kernels.patterns import AShape, Sampled, VerticalSlash, View
from vlmopt.kernels.patterns.blocks import by_block
from vlmopt.kernels.patterns.sampling import Draft, Trial
from vlmopt.kernels.patterns.tables import kept_keys

LENGTH, FEW, RECALL = 4096, 0.2, 0.9
ERROR = 0.03  # what 32 rows cannot tell: a head of which blocks could hold hardly more than `RECALL` may be dense


def weights_of(p):
    """fp32 [H, S, S]: dense attention."""
    logits = p.q[0] @ p.k[0].mT * p.scale
    return logits.masked_fill(~visible(p)[0], -torch.inf).softmax(-1)


def kept_by(p, launches):
    """Bool[H, S, S]: what launches over all rows in order keep."""
    kept = torch.zeros(p.q.shape[1], p.rows, p.width, dtype=torch.bool)
    for launch in launches:
        tiles = kept_keys(launch.index, p.width)[0]
        rows = tiles.repeat_interleave(launch.index.tile, 1)[:, : p.rows]
        kept[slice(None) if launch.index.heads is None else launch.index.heads] = rows
    return kept & visible(p)[0]


def best_of_few(p, weights):
    """What the best blocks of 64 x 64 keep in a fifth of the cells: fp32 [H]."""

    def sums(x):
        return by_block(by_block(x, 64).mT, 64).mT.flatten(1)

    mass, cells = sums(weights), sums(visible(p)[0].float()).expand(len(weights), -1)
    order = mass.argsort(-1, descending=True)
    few = cells.gather(-1, order).cumsum(-1) <= FEW * cells.sum(-1, keepdim=True)
    return (mass.gather(-1, order) * few).sum(-1) / p.rows


STRONG = [(kind, 12.0) for kind in planted.STRUCTURES]


@pytest.mark.parametrize(("kind", "gain"), [*STRONG, *((kind, 8.0) for kind in ("frames", "topics", "mixed"))])
def test_nine_tenths_of_every_structure_in_few_cells_or_all_of_it(kind, gain):
    plain = planted.structured(kind, heads=1, length=LENGTH, seed=3, gain=gain)
    weights = weights_of(plain)
    could = best_of_few(plain, weights) >= RECALL + ERROR
    for given in (plain, planted.sinks(plain, 0.6, 4)):
        kept = kept_by(plain, Sampled().build(given))
        held, cells = (weights * kept).sum(-1).mean(-1), kept.sum((1, 2)) / visible(plain).sum()
        assert bool((held >= RECALL).all()), held
        assert bool((cells[could] <= FEW).all()), (cells, could)
        assert bool(((cells <= Sampled().most + 0.05) | (cells == 1)).all()), cells


def test_noise_is_dense_and_tries_nothing(monkeypatch):
    monkeypatch.setattr(Draft, "of", lambda *_: pytest.fail("a flat head has nothing to propose"))
    plain = planted.structured("noise", heads=2, length=1024)
    assert bool((density(plain, Sampled().build(plain)).cells == 1).all())


def test_heads_are_decided_one_by_one():
    flat, rich = (planted.structured(kind, heads=2, length=2048) for kind in ("noise", "columns"))
    both = replace(
        flat, **{x: torch.cat([getattr(flat, x), getattr(rich, x)], 1) for x in "qkv"}, heads=torch.arange(4)
    )
    cells = density(both, Sampled().build(both)).cells
    assert cells[:2].tolist() == [1, 1]
    assert float(cells[2:].max()) < 0.3
    some = replace(both, heads=torch.tensor([1, 3]))
    assert torch.allclose(density(some, Sampled().build(some)).cells, cells[[1, 3]], atol=0.02)


def test_every_sample_of_a_batch_has_its_share():
    flat, rich = (planted.structured(kind, heads=2, length=2048) for kind in ("noise", "columns"))
    both = replace(rich, **{x: torch.cat([getattr(rich, x), getattr(flat, x)]) for x in "qkv"})
    both = replace(both, modality=both.modality.expand(2, -1))
    assert float(recall(both, Sampled().build(both)).mean(-1).min()) >= RECALL


@pytest.mark.parametrize("shape", ["plain", "left", "right", "right_chunk", "heads"])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.9999])
def test_tables_are_sound_for_every_share(shape, share):
    p = shaped(shape)
    kept = check(p, Sampled(recall=share, most=1.0, trial=8, **SMALL).build(p))
    if share > 0.99:
        assert torch.equal(kept[:, p.heads], visible(p).expand(-1, len(p.heads), -1, -1))


def test_a_trial_tells_what_an_index_keeps():
    """Its rows, tried by tiles out of their order, find what the whole index gives them."""
    p = planted.structured("mixed", heads=2, length=1024, frame=49)
    trial = Trial.of(p, 16, 64)
    rows = trial.position[0]
    draft = Draft.of(p, 64, 64)
    lines = VerticalSlash(vertical=96, slash=104)
    for launch in (
        lambda view: lines.launch(view, draft.verticals, draft.slashes),
        lambda view: AShape(sink=64, local=128).select(view)[0],
    ):
        whole = seen(p, [launch(View(p))])[0][:, rows].bool()
        part = launch(trial.view).index
        if part.covered == len(p.heads):
            assert torch.equal(kept_keys(part, p.width)[0] & trial.visible[0], whole)
        held, cells = trial.index(part)
        kept = (trial.weights[0] * whole).sum(-1)
        assert torch.allclose(held, kept.mean(-1) - kept.std(-1, correction=0) / 4, atol=1e-5)
        assert torch.allclose(cells, whole.sum((1, 2)) / trial.visible.sum(), atol=1e-6)


def test_the_bound_is_one():
    """No half of the keys holds more than `best` says."""
    p = prefill(width=512)
    trial = Trial.of(p, 16, 64)
    count = (trial.position[0] + 1) // 2
    ranked = trial.weights[0].sort(-1, descending=True).values.cumsum(-1)
    held = ranked.gather(-1, (count - 1).clamp_min(0)[None, :, None].expand(4, -1, -1))[..., 0]
    assert bool((trial.best(0.5) >= held.mean(-1) - 1e-5).all())
    assert float((trial.best(0.5) - held.mean(-1)).max()) < 0.05

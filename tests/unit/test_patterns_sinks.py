"""Whatever a sink takes of every row, patterns recall as much of the rest as without it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from tests.support import planted
from tests.support.kept import L, prefill, seen
from vlmopt.kernels.metrics import recall
from vlmopt.kernels.patterns import GridSparse, MinP, Prefill, VerticalSlash, registry
from vlmopt.kernels.patterns.probe import probe_rows
from vlmopt.kernels.sparse_attention import run_plan

SIZE = {"tile": 64, "run": 64}
LINES = {"vertical": 64, "slash": 128}
SPARSE = {
    "dense": {},
    "a_shape": {"sink": 64, "local": 128},
    "tri_shape": {"sink": 64, "local": 128, "last": 64},
    "vertical_slash": LINES,
    "grid": LINES,
    "min_p": {},
    "q_boundary": {"vision": VerticalSlash(**LINES)},
    "boundary_2d": {"vision_vision": GridSparse(**LINES), "text_vision": VerticalSlash(**LINES)},
    "minference_blocks": {"blocks": 4},
    "flex_prefill": {**SIZE, "coverage": 0.8, "min_budget": 128},
    "x_attention": {**SIZE, "threshold": 0.7},
    "proxy_attn": {**SIZE, "coverage": 0.8, "min_budget": 256},
    "pbs_attn": {**SIZE, "threshold": 0.7},
    "sampled": {"recall": 0.8},
    "psa": {"tile": 64, "run": 16, "block": 128, "energy": (0.3, 0.4, 0.5, 0.5), "exact_tail": 64},
}
SINKS = [(0.3, 1), (0.6, 1), (0.3, 4), (0.6, 4)]  # share of the mass, keys that hold it


@pytest.fixture(scope="module", params=planted.STRUCTURES)
def layers(request):
    """A layer five times: as it is, and with every kind of sink; as one batch."""
    plain = planted.structured(request.param, heads=2, length=1024, seed=1, frame=49)
    with_sinks = [planted.sinks(plain, *sink) for sink in SINKS]
    q, k = (torch.cat([getattr(p, x) for p in (plain, *with_sinks)]) for x in "qk")
    batch = replace(plain, q=q, k=k, v=plain.v.expand(k.shape), modality=plain.modality.expand(len(k), -1))
    return batch, replace(batch, q=plain.q.expand(q.shape), k=plain.k.expand(k.shape))


def test_every_pattern_is_tried():
    assert set(SPARSE) == set(registry)


@pytest.mark.parametrize("name", SPARSE)
def test_a_sink_blinds_no_pattern(name, layers):
    batch, plain = layers
    rest = recall(plain, registry[name](**SPARSE[name]).build(batch)).mean(-1)  # of the layer without a sink: [5, H]
    assert bool((rest[1:] >= rest[0] - 0.01).all()), rest


def test_min_p_starts_its_maximum_behind_the_sink():
    g = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, 4, 1024, 64, generator=g) + 0.4 for _ in range(2))
    p = Prefill(q, k, k, 1 / 8, heads=torch.arange(4))
    sunk = replace(p, k=torch.cat([k[:, :, :1] + 1, k[:, :, 1:]], 2))
    for pattern in (MinP(tau=0.5), MinP(tau=0.5, sink=0)):
        plain, blind = (seen(x, pattern.build(x)) for x in (p, sunk))
        assert torch.equal(plain[..., 64:], blind[..., 64:])
        assert bool(blind[..., 0].all())
        assert float(blind[0, :, 512:, 64:256].float().mean()) > 0.1


@pytest.mark.parametrize("name", SPARSE)
def test_a_sink_across_the_edge_of_a_block_blinds_none_either(name):
    """Left padding: the first two of four sink keys end one block, the others begin the next."""
    plain = planted.structured("mixed", heads=2, length=512, frame=49)
    plain = replace(plain, k_start=L([62]))
    sunk = planted.sinks(plain, 0.6, 4)
    rest, blind = (recall(plain, registry[name](**SPARSE[name]).build(p)).nanmean(-1) for p in (plain, sunk))
    assert bool((blind >= rest - 0.01).all())


@pytest.mark.parametrize("width", [1, 4, 5])
@pytest.mark.parametrize("name", SPARSE)
def test_a_prompt_of_hardly_more_than_a_sink_is_read_whole(name, width):
    p = prefill(width=width, modality=torch.ones(1, width, dtype=torch.long))
    out = run_plan(p, registry[name](**SPARSE[name]).build(p), backend="reference")
    dense = scaled_dot_product_attention(p.q, p.k, p.v, is_causal=True, scale=p.scale, enable_gqa=True)
    assert torch.allclose(out, dense, atol=1e-5)


@pytest.mark.parametrize("share", [0.3, 0.6])
def test_planted_sinks_take_their_share_and_leave_the_rest_as_it_was(share):
    plain = planted.structured("mixed", heads=1, length=256, frame=49)
    weights = [probe_rows(p, 200)[0, 0] for p in (plain, planted.sinks(plain, share, 4))]
    assert torch.allclose(weights[1][:, :4].sum(-1), torch.tensor(share), atol=1e-4)
    rest = [w[:, 4:] / w[:, 4:].sum(-1, keepdim=True) for w in weights]
    assert torch.allclose(*rest, atol=1e-4)

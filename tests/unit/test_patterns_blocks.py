"""What patterns of blocks promise: the rows' own keys, tidy tables, padding without effect, no loop over heads."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.support.prefills import LAYOUTS, layer, mask_of, masked, run, visible
from vlmopt.kernels.patterns import registry
from vlmopt.kernels.patterns.flex_prefill import FlexPrefill
from vlmopt.kernels.patterns.minference_blocks import MInferenceBlocks
from vlmopt.kernels.patterns.pbs_attn import PBSAttn
from vlmopt.kernels.patterns.prefill import Prefill
from vlmopt.kernels.patterns.proxy_attn import ProxyAttn
from vlmopt.kernels.patterns.psa import PSA
from vlmopt.kernels.patterns.x_attention import XAttention

SIZE = {"tile": 32, "run": 32}
SPARSE = {
    "minference_blocks": MInferenceBlocks(blocks=3, **SIZE),
    "flex_prefill": FlexPrefill(coverage=0.3, min_budget=32, probe=32, **SIZE),
    "x_attention": XAttention(threshold=0.5, stride=8, **SIZE),
    "proxy_attn": ProxyAttn(coverage=0.5, min_budget=32, **SIZE),
    "pbs_attn": PBSAttn(threshold=0.5, segment=64, probe=32, **SIZE),
    "psa": PSA(tile=32, run=16, block=64, energy=(0.3, 0.5, 0.7, 0.7), likeness=(-1, -1, -1), exact_tail=0),
}
DENSE = {
    "minference_blocks": MInferenceBlocks(blocks=1000, **SIZE),
    "flex_prefill": replace(SPARSE["flex_prefill"], coverage=1),
    "flex_prefill, query-aware": replace(SPARSE["flex_prefill"], coverage=1, divergence=1),
    "x_attention": replace(SPARSE["x_attention"], threshold=1),
    "proxy_attn": replace(SPARSE["proxy_attn"], coverage=1),
    "pbs_attn": replace(SPARSE["pbs_attn"], threshold=1),
    "psa": replace(SPARSE["psa"], energy=(1, 1, 1, 1)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", DENSE)
def test_everything_kept_is_dense(name, layout):
    prefill = layer(**LAYOUTS[layout])
    out = run(prefill, DENSE[name].build(prefill))
    assert torch.allclose(out, masked(prefill, visible(prefill)), atol=1e-5)
    assert DENSE[name].is_identity or name == "minference_blocks"


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", [name for name in SPARSE if name != "psa"])
def test_the_output_is_that_of_the_kept_keys(name, layout):
    prefill = layer(**LAYOUTS[layout])
    launches = SPARSE[name].build(prefill)
    mask = mask_of(prefill, launches[0])
    out, lse = run(prefill, launches, return_lse=True)
    assert torch.allclose(out, masked(prefill, mask), atol=1e-5)
    seen, kept = visible(prefill), mask.sum() / visible(prefill).expand_as(mask).sum()
    assert kept < 0.9
    assert not (mask & ~seen).any()
    own = torch.arange(prefill.width) == prefill.position[:, :, None]
    first = torch.arange(prefill.width) == prefill.key_first[:, None, None]
    assert mask[(seen & own[:, None]).expand_as(mask)].all()  # every row reads its own key
    assert mask[(seen & first[:, None]).expand_as(mask)].all()  # and the first one
    assert torch.equal(lse.isinf(), ~prefill.real[:, None].expand_as(lse))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", SPARSE)
def test_tables_are_in_order_and_full_runs_need_no_mask(name, layout):
    prefill = layer(**LAYOUTS[layout])
    (launch,) = SPARSE[name].build(prefill)
    index = launch.index
    pieces = index.run_ptr.flatten(0, 1)
    assert index.run_ptr[..., 0].flatten().tolist() == [0, *index.run_ptr[..., -1].flatten().tolist()][:-1]
    assert index.run_ptr.flatten()[-1] == len(index.run_start)
    order = torch.arange(prefill.width).expand(prefill.batch, 1, -1) if index.k_order is None else index.k_order.long()
    if launch.keys is not None:
        order = launch.keys.key_position
    for b in range(prefill.batch):
        limit = torch.where(prefill.real[b], prefill.position[b], -1)
        for h in range(4):
            row = pieces[b * prefill.q.shape[1] + h].tolist()
            for t in range(index.tiles):
                starts = index.run_start[row[t] : row[t + 1]]
                assert (starts.sort().values.diff() >= index.run).all()  # disjoint
                full = starts[: index.run_full[b, h, t]]
                if len(full):
                    at = order[b, h // (prefill.q.shape[1] // 2) if order.shape[1] > 1 else 0]
                    position = at[(full[:, None] + torch.arange(index.run)).flatten()]
                    mine = limit[t * index.tile : (t + 1) * index.tile]
                    assert position.max() <= mine[mine >= 0].min()
                    assert position.min() >= prefill.key_first[b]


@pytest.mark.parametrize("name", SPARSE)
def test_padding_changes_nothing_and_is_never_read(name):
    alone = layer(rows=150, batch=1)
    expected = run(alone, SPARSE[name].build(alone))
    for first, lengths in ((0, {"q_len": 150, "k_len": 150}), (64, {"q_len": 214, "k_len": 214, "k_start": 64})):
        q, k, v = (torch.full((1, heads, 230, 16), torch.nan) for heads in (4, 2, 2))
        for whole, part in zip((q, k, v), (alone.q, alone.k, alone.v), strict=True):
            whole[:, :, first : first + 150] = part
        given = {name: torch.tensor([length]) for name, length in lengths.items()}
        padded = Prefill(q, k, v, alone.scale, heads=alone.heads, **given)
        out = run(padded, SPARSE[name].build(padded))
        assert torch.allclose(out[:, :, first : first + 150], expected, atol=1e-5)
        assert (out[:, :, :first] == 0).all()
        assert (out[:, :, first + 150 :] == 0).all()


@pytest.mark.parametrize("name", SPARSE)
def test_a_subset_of_heads_gets_the_same_keys(name):
    prefill = layer(query_heads=6)
    some = replace(prefill, heads=torch.tensor([1, 2, 5]))
    pattern = SPARSE[name]
    if name == "pbs_attn":  # its order of keys is an average over the heads that it is built for
        pattern = replace(pattern, threshold=1)
    both, few = run(prefill, pattern.build(prefill)), run(some, pattern.build(some))
    assert torch.allclose(both[:, [1, 2, 5]], few[:, [1, 2, 5]], atol=1e-5)


class Count(TorchDispatchMode):
    calls = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", SPARSE)
def test_the_number_of_calls_does_not_grow_with_heads_or_samples(name):
    def calls(**given):
        prefill = layer(rows=128, **given)
        with Count() as count:
            SPARSE[name].build(prefill)
        return count.calls

    assert calls(batch=1, query_heads=2) == calls(batch=3, query_heads=8)


def test_what_does_not_fit_is_refused():
    for make, words in (
        (lambda: XAttention(stride=24), "stride 24 must divide tile 128 and run 128"),
        (lambda: ProxyAttn(stride=3), "stride 3 must divide"),
        (lambda: PBSAttn(segment=200), "segment must be a multiple of run 128, got 200"),
        (lambda: PBSAttn(segment=2**20), "segment must be .* <= 65536"),
        (lambda: PSA(block=2**20), "block must be .* <= 65536"),
        (lambda: PSA(energy=(0.9, 0.8, 0.9, 1)), "four ascending shares"),
        (lambda: PSA(likeness=(0.5,)), "three cosines"),
        (lambda: PSA(run=128), "a smaller run always fits"),
        (lambda: MInferenceBlocks(tile=48), "tile must be one of"),
        (lambda: FlexPrefill(coverage=0), "coverage"),
    ):
        with pytest.raises(ValueError, match=words):
            make()
    assert {*SPARSE} <= {*registry}

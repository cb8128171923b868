"""Evicting keys after the prompt equals the full cache with a mask per head, for every family, cut and batch."""

from __future__ import annotations

import pytest

from tests.support.evicted import Evicted, check, gone
from tests.support.families import FAMILIES, HYBRID, MASKABLE, Image, Video
from vlmopt import kv

METHODS = {
    "random_kv": kv.RandomKV(keep_ratio=0.4, recent=2),
    "key_diff": kv.KeyDiff(keep_ratio=0.4, recent=2, layer_budgets="pyramid"),
    "snap_kv": kv.SnapKV(keep_ratio=0.4, recent=2, window=8),
    "snap_kv-mixed": kv.SnapKV(keep_ratio=0.4, recent=2, window=8, mix=True, pooling="sequence"),
    "vl_cache": kv.VLCache(keep_ratio=0.4, recent=2),
    "vl_cache-ends": kv.VLCache(keep_ratio=0.4, recent=2, protect="ends"),
    "one_set": kv.SnapKV(keep_ratio=0.4, recent=2, window=8, per_head=False),
}
CUTS = [("", "keep"), ("pre", "keep"), ("mid", "keep"), ("progressive", "keep"), ("progressive", "pospad")]
ROWS = {
    "one": [[5, Image(0), 7]],
    "ragged": [[5, Image(0), 7], [3, Image(1), 6], [9]],
    "two_images": [[5, Image(0), 2, Image(1), 7]],
}


def covered(family, method, cut, rows):
    """All of it for M-RoPE and for positions of one axis; a ragged batch for windows and for layers that share keys."""
    if family in ("qwen2_5_vl", "llava"):
        return True
    return rows == "ragged" and (method == "vl_cache" or (family in ("gemma3", "gemma4") and cut in ("", "mid")))


CELLS = [
    pytest.param(family, method, cut, rows, id=f"{family.name}-{method}-{cut[0] or 'whole'}-{cut[1]}-{rows}")
    for family in MASKABLE
    for method in METHODS
    for cut in CUTS
    for rows in ROWS
    if covered(family.name, method, cut[0], rows) and (family.name == "qwen2_5_vl" or cut[1] == "keep")
]


@pytest.mark.parametrize(("family", "method", "cut", "rows"), CELLS)
def test_eviction_equals_a_mask_per_head(family, method, cut, rows):
    cell = Evicted(family, METHODS[method], *cut)
    batch = family.inputs(ROWS[rows])
    cache = check(cell, batch)
    evicted = gone(cache, batch.ids.shape[1])[1]
    assert evicted
    assert all(bool(left.any()) for left in evicted.values())


@pytest.mark.parametrize("method", ["snap_kv", "vl_cache", "one_set"])
@pytest.mark.parametrize("family", [pytest.param(f, id=f.name) for f in HYBRID])
def test_layers_with_attention_evict_between_recurrent_ones(family, method):
    cache = check(Evicted(family, METHODS[method]), family.inputs(ROWS["ragged"]))
    assert gone(cache, 1)[1]


VIDEOS = [
    pytest.param(family, method, cut, id=f"{family.name}-{method}-{cut or 'whole'}")
    for family in MASKABLE
    for method in METHODS
    for cut in ("", "pre", "progressive")
    if family.videos and (family.name == "qwen2_5_vl" or (method in ("snap_kv", "vl_cache") and cut != "pre"))
]


@pytest.mark.parametrize(("family", "method", "cut"), VIDEOS)
def test_videos(family, method, cut):
    two = [[4, Video(0), 5], [2, Video(1), 3, Image(0), 4]]
    rows = two if len(family.videos) > 1 else [[4, Video(0), 5, Image(0), 2]]
    check(Evicted(family, METHODS[method], cut), family.inputs(rows))


@pytest.mark.parametrize("method", ["snap_kv", "vl_cache", "random_kv", "one_set"])
@pytest.mark.parametrize("name", [name for name in ("qwen2_5_vl", "gemma3", "gemma4") if name in FAMILIES])
def test_eager_attention(name, method):
    """It always makes a mask, and one step after another gathers it anew."""
    check(Evicted(FAMILIES[name], METHODS[method], "mid"), FAMILIES[name].inputs(ROWS["ragged"]), "eager")

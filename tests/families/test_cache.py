"""The logical cache alone: reports the length the sequence would have had, stores what survived."""

from __future__ import annotations

import copy
import pickle
from types import SimpleNamespace

import pytest
import torch
from transformers import DynamicCache

from vlmopt.runtime import cache_kinds
from vlmopt.runtime.cache import LogicalCache, LogicalDynamicCache, adopt, keep_slots
from vlmopt.runtime.context import Lease

B, HEADS, DIM, LAYERS, PROMPT = 2, 2, 4, 3, 10
KEPT = torch.tensor([[0, 1, 4, 7, 8, 9], [0, 2, 3, 6, 8, 9]])  # logical indices that layer 1 and 2 keep


def slots(n: int, start: int = 0) -> torch.Tensor:
    """Keys whose value is their own running number, so that a mix-up shows."""
    return (start + torch.arange(n, dtype=torch.float32))[None, None, :, None].expand(B, HEADS, n, DIM).clone()


@pytest.fixture
def cache():
    """A prompt of 10 stored whole in layer 0 and cut to 6 in layers 1 and 2."""
    cache = DynamicCache()
    state = adopt(cache, Lease())
    for layer in range(LAYERS):
        n = PROMPT if layer == 0 else KEPT.shape[1]
        state.pending[layer] = PROMPT - n
        cache.update(slots(n), slots(n), layer)
    state.index[1], state.valid[1], state.tail = KEPT.clone(), torch.ones_like(KEPT, dtype=torch.bool), PROMPT
    return cache


def physical(cache) -> list[int]:
    return [layer.keys.shape[-2] for layer in cache.layers]


def decode(cache, steps: int) -> None:
    for _ in range(steps):
        for layer in range(LAYERS):
            cache.update(slots(1, cache.get_seq_length(layer)), slots(1), layer)


def test_adoption_happens_once_and_in_place():
    cache, lease = DynamicCache(), Lease()
    state = adopt(cache, lease)
    assert type(cache) is LogicalDynamicCache
    assert isinstance(cache, DynamicCache)
    assert adopt(cache, Lease()) is state


def test_other_cache_classes_keep_their_own_class_below():
    class Special(DynamicCache):
        pass

    cache = Special()
    adopt(cache, Lease())
    assert isinstance(cache, Special)
    assert isinstance(cache, LogicalCache)


def test_lengths_are_logical_and_storage_is_physical(cache):
    assert physical(cache) == [10, 6, 6]
    assert [cache.get_seq_length(i) for i in range(LAYERS)] == [10, 10, 10]
    decode(cache, 3)
    assert physical(cache) == [13, 9, 9]
    assert [cache.get_seq_length(i) for i in range(LAYERS)] == [13, 13, 13]


@pytest.mark.parametrize("query", [4, torch.arange(10, 14)], ids=["length", "cache_position"])
def test_masks_are_sized_for_the_logical_sequence(cache, query):
    assert [cache.get_mask_sizes(query, i) for i in range(LAYERS)] == [(14, 0)] * LAYERS


def test_length_is_right_in_the_middle_of_a_forward():
    cache = DynamicCache()
    state = adopt(cache, Lease())
    state.pending[0] = 4
    assert cache.get_seq_length() == 0
    cache.update(slots(6), slots(6), 0)
    assert (cache.get_seq_length(0), cache.get_seq_length(1)) == (10, 0)


def test_columns_name_the_logical_place_of_every_slot(cache):
    decode(cache, 2)
    columns, valid = cache._vlmopt.columns(1, cache.get_seq_length(), torch.device("cpu"))
    assert columns[0].tolist() == [0, 1, 4, 7, 8, 9, 10, 11]
    assert bool(valid.all())
    assert valid.shape == columns.shape
    assert cache._vlmopt.columns(0, 12, torch.device("cpu")) == (None, None)


def test_beams_move_the_index_with_the_keys(cache):
    for layer in cache.layers:
        layer.keys[1] += 100
    cache.reorder_cache(torch.tensor([1, 1]))
    assert torch.equal(cache._vlmopt.index[1], KEPT[[1, 1]])
    assert float(cache.layers[1].keys[0, 0, 0, 0]) == 100
    cache.batch_repeat_interleave(3)
    assert cache._vlmopt.index[1].shape == cache._vlmopt.valid[1].shape == (6, 6)
    cache.batch_select_indices(torch.tensor([0, 3]))
    assert torch.equal(cache._vlmopt.index[1], KEPT[[1, 1]])


def test_crop_takes_text_and_refuses_the_pruned_prompt(cache):
    decode(cache, 3)
    cache.crop(-2)
    assert (cache.get_seq_length(), physical(cache)) == (11, [11, 7, 7])
    cache.crop(-3)  # down to 8: places 8 and 9 are stored one to one in both rows
    assert (cache.get_seq_length(), physical(cache)) == (8, [8, 4, 4])
    assert cache._vlmopt.columns(1, 8, torch.device("cpu"))[0].tolist() == KEPT[:, :4].tolist()
    before = physical(cache)
    with pytest.raises(ValueError, match="crop"):
        cache.crop(-2)  # 6 and 7 hold dropped tokens
    assert physical(cache) == before
    decode(cache, 1)
    assert cache._vlmopt.columns(1, 9, torch.device("cpu"))[0].tolist() == [[0, 1, 4, 7, 8], [0, 2, 3, 6, 8]]


def test_a_refused_crop_changes_nothing(cache):
    """Stage 1 could be cut, stage 2 cannot: neither is."""
    state = cache._vlmopt
    state.index = {1: torch.arange(PROMPT).expand(B, -1), 2: KEPT.clone()}
    state.valid = {1: None, 2: None}
    with pytest.raises(ValueError, match="crop"):
        cache.crop(-4)
    assert (state.index[1].shape[1], state.index[2].shape[1], state.tail) == (PROMPT, 6, PROMPT)
    assert physical(cache) == [10, 6, 6]


def test_crop_of_nothing_reaches_the_layers(cache):
    """Sliding layers that recorded their past for assisted decoding go back to their window in `crop(0)`."""
    asked = []
    cache.layers[1].crop = asked.append
    cache.crop(0)
    assert asked == [0]


def test_crop_to_an_absolute_length_where_the_release_knows_it(cache):
    decode(cache, 3)
    cache.crop(11)
    assert (cache.get_seq_length(), physical(cache)) == (11, [11, 7, 7])
    cache.crop(50)
    assert cache.get_seq_length() == 11


def test_keys_of_an_offloaded_cache_leave_when_its_copies_have_arrived(cache, monkeypatch):
    """Their copies to the CPU are not waited for; read earlier, they may hold anything."""
    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waited.append(physical(cache)[1]))
    for offloading in (False, True):
        cache.offloading = offloading
        keep_slots(cache, 1, torch.arange(6 - offloading).expand(B, 1, -1), None)
    assert waited == [6]
    assert physical(cache)[1] == 5


def test_reset_it_is_a_plain_cache_again(cache):
    """Empty, it serves any model, also when the one that filled it has been restored."""
    cache._vlmopt.lease.alive = False
    cache.reset()
    assert type(cache) is DynamicCache
    assert not hasattr(cache, "_vlmopt")
    decode(cache, 1)


def test_reset_a_cache_of_another_class_is_of_that_class():
    class Special(DynamicCache):
        pass

    cache = Special()
    adopt(cache, Lease())
    cache.reset()
    assert type(cache) is Special


def test_copies_go_their_own_way(cache):
    for twin in (copy.deepcopy(cache), pickle.loads(pickle.dumps(cache))):
        decode(twin, 2)
        assert (twin.get_seq_length(), cache.get_seq_length()) == (12, 10)
        assert physical(cache) == [10, 6, 6]
        twin._vlmopt.index[1][0, 0] = 5
        assert torch.equal(cache._vlmopt.index[1], KEPT)


def test_a_copy_ends_with_the_lease_of_its_original(cache):
    twin = copy.deepcopy(cache)
    cache._vlmopt.lease.alive = False
    for dead in (cache, twin):
        with pytest.raises(ValueError, match="restored"):
            decode(dead, 1)


def test_caches_that_cannot_hold_a_length_per_layer_are_named():
    class WithoutLayers:
        pass

    assert cache_kinds.why_fixed(DynamicCache()) is None
    assert cache_kinds.why_fixed(None) is None
    assert "WithoutLayers keeps no object per layer" in (cache_kinds.why_fixed(WithoutLayers()) or "")


def test_static_layers_that_go_by_positions_are_named():
    by_position = SimpleNamespace(max_cache_len=8)  # as up to some release
    counting = SimpleNamespace(max_cache_len=8, cumulative_length=0)
    reasons = [
        cache_kinds.why_fixed(SimpleNamespace(is_compileable=True, layers=[layer]), inside=False)
        for layer in (counting, by_position)
    ]
    assert reasons[0] is None
    assert "which place of the whole sequence" in (reasons[1] or "")

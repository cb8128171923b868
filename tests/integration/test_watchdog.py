"""The watchdog fires on text that repeats itself, and on nothing else."""

from __future__ import annotations

import pytest
import torch

from vlmopt.attention_fix import repetitive


def distinct(ids):
    """Distinct-4 of a list, by its definition."""
    grams = [tuple(ids[i : i + 4]) for i in range(len(ids) - 3)]
    return len(set(grams)) / len(grams)


def repeats(ids, n=16):
    grams = [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
    return len(set(grams)) < len(grams)


def fires(ids, window=128):
    return bool(repetitive(torch.tensor([ids]), window))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("words", [2, 3, 4, 5, 7, 30])
@pytest.mark.parametrize("length", [32, 33, 64, 128, 200])
def test_it_follows_the_definition(length, words, seed):
    ids = torch.randint(0, words, (8, length), generator=torch.Generator().manual_seed(seed))
    want = [distinct(row[-128:]) < 0.6 or repeats(row[-128:]) for row in ids.tolist()]
    assert repetitive(ids).tolist() == want


def test_a_loop_is_noticed():
    sentence = list(range(20))
    assert not fires(list(range(100, 180)))
    assert fires([*range(100, 140), *sentence, *range(200, 230), *sentence])  # one sentence, twice
    assert not fires([*range(100, 140), *sentence[:15], *range(200, 230), *sentence[:15]])  # 15 tokens are no sentence
    assert fires([7] * 40)
    assert fires([1, 2, 3] * 12)


def test_short_phrases_may_come_back():
    text = [token for i in range(20) for token in (1, 2, 3, 100 + i)]  # "there is a ..."
    assert distinct(text) == 1
    assert not fires(text)


def test_short_texts_are_left_alone():
    assert not fires([7] * 31)
    assert fires([7] * 32)
    assert repetitive(torch.zeros(3, 0, dtype=torch.long)).tolist() == [False] * 3


def test_only_the_window_counts():
    loop, fresh = [1, 2, 3, 4] * 20, list(range(100, 228))
    assert fires(loop)
    assert not fires(loop + fresh)
    assert fires(loop + fresh, window=200)
    with pytest.raises(ValueError, match="at least 32"):
        fires(fresh, window=16)


def test_samples_are_apart():
    ids = torch.stack([torch.arange(64), torch.full((64,), 3), torch.arange(64).flip(0)])
    assert repetitive(ids).tolist() == [False, True, False]


def test_nothing_is_read_back_from_the_device():
    """Tensors without data cannot be read, so whatever works on them waits for no device."""
    assert repetitive(torch.empty(3, 200, dtype=torch.long, device="meta")).shape == (3,)

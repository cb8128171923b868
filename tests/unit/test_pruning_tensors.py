"""Packing, runs, renumbering and budgets against loops one can read."""

from __future__ import annotations

import random

import pytest
import torch

from vlmopt.pruning import pack, repack_positions, run_ends, run_mean
from vlmopt.pruning.budget import kept_tokens, share, strided


def cases(count=60):
    """Random (Bool[B, L], Long[B, L] spans) of many shapes, empty and full rows among them."""
    generator = torch.Generator().manual_seed(0)
    for i in range(count):
        batch, length = 1 + i % 4, 1 + (i * 7) % 23
        density = torch.rand(batch, 1, generator=generator).round(decimals=1)
        mask = torch.rand(batch, length, generator=generator) < density
        span = (torch.rand(batch, length, generator=generator) < 0.2).long().cumsum(1)
        yield mask, span


def ends_by_loop(dropped, span):
    out = torch.zeros_like(dropped)
    for b in range(dropped.shape[0]):
        for i in range(dropped.shape[1]):
            last = i + 1 == dropped.shape[1] or not dropped[b, i + 1] or span[b, i + 1] != span[b, i]
            out[b, i] = dropped[b, i] and last
    return out


def test_pack_against_loops():
    for content, _ in cases():
        if not content.any():
            continue
        index, valid = pack(content)
        rows = [row.nonzero()[:, 0].tolist() for row in content]
        width = max(map(len, rows))
        assert index.shape == (len(rows), width)
        assert (valid is None) == all(len(row) == width for row in rows)
        for b, row in enumerate(rows):
            got = index[b].tolist()
            assert got[width - len(row) :] == row
            assert len(set(got)) == width  # fillers repeat nothing
            assert not content[b, got[: width - len(row)]].any()
            if valid is not None:
                assert valid[b].tolist() == [False] * (width - len(row)) + [True] * len(row)


def test_pack_of_everything_is_the_identity():
    index, valid = pack(torch.ones(2, 5, dtype=torch.bool))
    assert valid is None
    assert index.tolist() == [[0, 1, 2, 3, 4]] * 2


def test_run_ends_against_loops():
    for dropped, span in cases():
        assert torch.equal(run_ends(dropped, span), ends_by_loop(dropped, span))


def test_pospad_example():
    # A 3 x 4 grid, {2, 3, 7, 11} kept: markers at 1, 6 and 10, seven slots left.
    dropped = torch.ones(1, 12, dtype=torch.bool)
    dropped[0, [2, 3, 7, 11]] = False
    ends = run_ends(dropped, torch.zeros(1, 12, dtype=torch.long))
    assert ends[0].nonzero()[:, 0].tolist() == [1, 6, 10]
    index, valid = pack(ends | ~dropped)
    assert valid is None
    assert index[0].tolist() == [1, 2, 3, 6, 7, 10, 11]
    coords = torch.cartesian_prod(torch.arange(3), torch.arange(4))
    assert coords[[1, 6, 10]].tolist() == [[0, 1], [1, 2], [2, 2]]


def test_a_run_never_crosses_spans():
    dropped = torch.ones(1, 6, dtype=torch.bool)
    assert run_ends(dropped, torch.tensor([[0, 0, 1, 1, 1, 2]])).tolist() == [[False, True, False, False, True, True]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_run_mean_against_loops(dtype):
    generator = torch.Generator().manual_seed(1)
    for dropped, span in cases():
        hidden = torch.randn(*dropped.shape, 5, generator=generator).to(dtype)
        got, ends = run_mean(hidden, dropped, span), ends_by_loop(dropped, span)
        want = torch.zeros_like(hidden)
        for b, last in ends.nonzero().tolist():
            first = last
            while first > 0 and dropped[b, first - 1] and span[b, first - 1] == span[b, last]:
                first -= 1
            want[b, last] = hidden[b, first : last + 1].double().mean(0).to(dtype)
        assert got.dtype == dtype
        assert torch.allclose(got, want, atol=1e-6, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5)
        assert got[~ends].eq(0).all()


def test_run_mean_does_not_depend_on_the_batch():
    generator = torch.Generator().manual_seed(2)
    dropped, span = torch.rand(3, 400, generator=generator) < 0.9, torch.zeros(3, 400, dtype=torch.long)
    hidden = torch.randn(3, 400, 16, generator=generator)
    together = run_mean(hidden, dropped, span)
    for b in range(3):
        assert torch.equal(together[b : b + 1], run_mean(hidden[b : b + 1], dropped[b : b + 1], span[b : b + 1]))


def test_run_mean_accumulates_in_fp32():
    hidden = torch.full((1, 4001, 1), 1.0, dtype=torch.bfloat16)  # a bf16 sum stops growing at 256
    out = run_mean(hidden, torch.ones(1, 4001, dtype=torch.bool), torch.zeros(1, 4001, dtype=torch.long))
    assert out[0, -1, 0] == 1.0


@pytest.mark.parametrize("past", [0, 40])
@pytest.mark.parametrize("filler", [0, 1, None])  # positions that models give to padding; None: counted on
def test_repack_against_loops(past, filler):
    rng = random.Random(0)
    for _ in range(60):
        length, rows = rng.randint(2, 14), []
        for _ in range(rng.randint(1, 3)):
            pads = 0 if past else rng.randint(0, length - 2)
            left = rng.random() < 0.5
            real = [i >= pads if left else i < length - pads for i in range(length)]
            keep = [r and rng.random() < 0.6 for r in real]
            keep[max(i for i in range(length) if real[i])] = True
            rows.append((real, keep))
        ids = torch.full((len(rows), length), 1 if filler is None else filler)
        for b, (real, _) in enumerate(rows):
            number = past
            for i, r in enumerate(real):
                ids[b, i] = number if r or filler is None else filler
                number += r or filler is None
        index, valid = pack(torch.tensor([keep for _, keep in rows]))
        new, shift = repack_positions(
            ids, index, valid, None if filler is None else torch.tensor([real for real, _ in rows])
        )
        for b, (real, keep) in enumerate(rows):
            kept, last_real = sum(keep), max(i for i in range(length) if real[i])
            assert new[b, new.shape[1] - kept :].tolist() == list(range(past, past + kept))
            if filler is not None or all(real[last_real:]):
                assert ids[b, last_real] + 1 + shift[b] == past + kept  # the next token follows without a gap


def test_repack_when_the_chunk_begins_and_ends_with_dropped_tokens():
    new, shift = repack_positions(torch.arange(20, 30)[None], torch.tensor([[2, 3, 6]]), None, None)
    assert new.tolist() == [[20, 21, 22]]
    assert shift.tolist() == [-7]  # the next token stood at 30, now at 23


def test_budgets():
    assert [kept_tokens(10, r, None) for r in (0.01, 0.05, 0.25, 0.449, 0.45, 1.0)] == [1, 1, 3, 4, 5, 10]
    assert [kept_tokens(10, None, k) for k in (1, 10, 11)] == [1, 10, 10]
    assert kept_tokens(100, 0.29, None) == 29
    with pytest.raises(ValueError, match="keep_ratio or keep_tokens"):
        kept_tokens(10, None, None)


def test_share_is_exact_bounded_and_fair():
    rng = random.Random(1)
    for _ in range(500):
        counts = [rng.choice([0, 1, 2, 7, 60, 600]) for _ in range(rng.randint(1, 6))]
        budget = rng.randint(0, sum(counts) + 3)
        parts = share(counts, budget)
        assert sum(parts) == min(budget, sum(counts))
        assert all(0 <= part <= count for part, count in zip(parts, counts, strict=True))
        filled = sum(count > 0 for count in counts)
        if budget >= filled:
            assert all(part >= 1 for part, count in zip(parts, counts, strict=True) if count)
            if sum(counts):
                ideal = [min(budget, sum(counts)) * count / sum(counts) for count in counts]
                assert all(abs(p - i) <= len(counts) for p, i in zip(parts, ideal, strict=True))
    assert share([4, 4], 3) == [2, 1]


def test_strided_takes_the_nearest_to_each_centre():
    for n in range(1, 30):
        for k in range(n + 1):
            picks = strided(n, k)
            assert len(set(picks)) == k
            for i, pick in enumerate(picks):
                centre = (i + 0.5) * n / k
                best = min(range(n), key=lambda cell, c=centre: (round(abs(cell + 0.5 - c), 9), cell))
                assert pick == best

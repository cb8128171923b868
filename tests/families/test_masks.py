"""The mask rules by brute force: every entry of a gathered mask against what the logical mask says about that pair."""

from __future__ import annotations

import pytest
import torch

from vlmopt.pruning import pack
from vlmopt.runtime import masks

B, L, PAST, HEADS = 3, 9, 4, 2


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(3)


def rows_and_columns(rng, ragged: bool):
    """Surviving rows of a chunk of L tokens behind PAST cached ones of which some are gone too."""
    content = torch.rand(B, L, generator=rng) < 0.6
    content[:, -1] = True
    if not ragged:
        content = content[:1].expand(B, -1)
    rows, valid = pack(content)
    past = torch.tensor([0, 2, 3]).expand(B, -1)
    columns = torch.cat([past, rows + PAST], 1)
    keys = None if valid is None else torch.cat([torch.ones(B, 3, dtype=torch.bool), valid], 1)
    return rows, columns, keys


@pytest.mark.parametrize("heads", [1, HEADS])
@pytest.mark.parametrize("batch", [1, B])
@pytest.mark.parametrize("ragged", [False, True], ids=["even", "ragged"])
@pytest.mark.parametrize("kind", ["bool", "float"])
@pytest.mark.parametrize("already", [False, True], ids=["", "rows_already_cut"])
def test_gather_4d(rng, heads, batch, ragged, kind, already):
    rows, columns, keys = rows_and_columns(rng, ragged)
    allowed = torch.rand(batch, heads, L, PAST + L, generator=rng) < 0.7
    lowest = torch.finfo(torch.float32).min
    mask = allowed if kind == "bool" else torch.zeros(allowed.shape).masked_fill(~allowed, lowest)
    if already:  # the loop kept the last two rows itself
        mask, shown = mask[:, :, -2:], None
        wanted_rows = torch.tensor([0, 1]).expand(B, -1)
    else:
        shown = wanted_rows = rows
    out = masks.gather_4d(mask, shown, columns, keys, PAST)
    assert out.dtype == mask.dtype
    assert out.shape == (B, heads, wanted_rows.shape[1], columns.shape[1])
    for b in range(B):
        for h in range(heads):
            for i, row in enumerate(wanted_rows[b].tolist()):
                for j, column in enumerate(columns[b].tolist()):
                    given, real = mask[min(b, batch - 1), h, row, column], keys is None or bool(keys[b, j])
                    if kind == "float":
                        wanted = float(given) if real else lowest
                    else:
                        diagonal = not already and not real and column == row + PAST  # a filler sees itself alone
                        wanted = (bool(given) and real) or diagonal
                    assert out[b, h, i, j].item() == wanted


@pytest.mark.parametrize("past", [0, PAST])
def test_ragged_mask(rng, past):
    rows, columns, keys = rows_and_columns(rng, ragged=True)
    if not past:
        columns, keys = rows, keys[:, 3:]
    out = masks.ragged_mask(rows + past, columns, keys)
    for b in range(B):
        for i, row in enumerate((rows[b] + past).tolist()):
            for j, column in enumerate(columns[b].tolist()):
                assert bool(out[b, 0, i, j]) == ((bool(keys[b, j]) and column <= row) or column == row)
    assert bool(out.any(-1).all()), "no row may be empty"


def test_gather_2d_and_recurrent(rng):
    rows, columns, keys = rows_and_columns(rng, ragged=True)
    mask = (torch.rand(B, PAST + L, generator=rng) < 0.8).long()
    out = masks.gather_2d(mask, columns, keys)
    chunk = mask[:, PAST:]
    recurrent = masks.recurrent_mask(chunk, rows, keys[:, 3:])
    for b in range(B):
        assert out[b].tolist() == [int(mask[b, c]) * int(k) for c, k in zip(columns[b], keys[b], strict=True)]
        assert recurrent[b].tolist() == [int(chunk[b, r]) * int(k) for r, k in zip(rows[b], keys[b, 3:], strict=True)]
    assert torch.equal(masks.gather_2d(mask, columns, None), mask.gather(1, columns))
    assert torch.equal(masks.recurrent_mask(None, rows, keys[:, 3:]), keys[:, 3:].long())
    assert masks.recurrent_mask(None, rows, None) is None


@pytest.mark.parametrize("shape", [(B, L, 5), (1, L, 5), (3, B, L, 5), (4, 1, L, 5)], ids=str)
def test_take_rows(rng, shape):
    """Hidden states, rotary tables of one or of all rows, and the three-axis tables of older releases."""
    table, (rows, _, _) = torch.randn(shape, generator=rng), rows_and_columns(rng, ragged=True)
    out = masks.take_rows(table, rows)
    for b in range(B):
        assert torch.equal(out[..., b, :, :], table[..., min(b, shape[-3] - 1), rows[b], :])

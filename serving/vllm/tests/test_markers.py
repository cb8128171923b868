"""PosPad with a number of placeholders that is known before the choice."""

from __future__ import annotations

import pytest
import torch

from vlmopt_vllm import markers


def runs(keep: torch.Tensor, total: int) -> int:
    dropped = torch.ones(total, dtype=torch.bool).index_fill_(0, keep, False)
    return int(dropped[0]) + int((dropped[1:] & ~dropped[:-1]).sum())


@pytest.mark.parametrize("scored", [True, False])
def test_rows_and_runs_fill_exactly_the_room_that_was_announced(scored):
    for seed in range(300):
        generator = torch.Generator().manual_seed(seed)
        total = int(torch.randint(1, 60, (), generator=generator))
        count = int(torch.randint(1, total + 1, (), generator=generator))
        scores = torch.rand(total, generator=generator)
        chosen = scores.argsort(descending=True)[:count].sort().values
        room = markers.slots(total, count)
        keep = markers.fitted(chosen, scores if scored else None, total, room)
        assert torch.equal(keep, keep.unique())
        assert len(keep) + runs(keep, total) == room == len(markers.with_ends(keep, total))


def test_the_best_rows_stay_while_they_fit():
    scores = torch.tensor([0.0, 9.0, 0.0, 0.0, 8.0, 0.0, 0.0, 7.0, 0.0, 0.0])
    # 1 and 4 leave the runs 0, 2-3 and 5-9: 5 places; with 7 there would be 7, so a row beside them fills the sixth.
    assert markers.fitted(torch.tensor([1, 4, 7]), scores, 10, 6).tolist() == [1, 2, 4]
    # A run of one row costs as much as the row itself, which comes for nothing.
    assert markers.fitted(torch.tensor([1, 4, 7]), scores, 10, 7).tolist() == [0, 1, 4, 7]


def test_a_marker_is_the_mean_of_its_run_or_its_last_row_and_nothing_is_added_to_it():
    rows, keep = torch.arange(12.0).view(6, 2), torch.tensor([0, 3])
    assert markers.marked(rows, keep, "mean", 2).tolist() == [[0, 1], [3, 4], [6, 7], [9, 10]]
    assert markers.marked(rows, keep, "last", 1).tolist() == [[0, 1], [4, 0], [6, 7], [10, 0]]
    assert markers.marked(rows, keep, torch.tensor([50.0]), 1).tolist() == [[0, 1], [50, 0], [6, 7], [50, 0]]

"""M-RoPE positions of pruned prompts, against those of transformers at the kept cells. Pure tensors, no engine."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
import transformers as hf

from vlmopt_vllm.positions import Span, cells_of, extent_of, lay_out, packed, placed, unpacked

from .checkpoints import END, IMAGE, QWEN_IDS, START, VIDEO, mrope, qwen_tower, text

GRIDS = [(1, 6, 10), (1, 20, 4), (1, 3, 3), (1, 17, 19)]  # tall, and one of more than 256 cells
TEXT = 9


def prompt(grids: list[tuple[int, int, int]], token: int = IMAGE) -> list[int]:
    ids = [TEXT] * 3
    for t, h, w in grids:
        ids += [START, *[token] * (t * h * w), END, TEXT, TEXT]
    return [*ids, TEXT]


def of_transformers(ids: list[int], grids: list[tuple[int, int, int]], **video: torch.Tensor) -> torch.Tensor:
    """Long[3, n] of the whole prompt, by the model's own rule; merge 1."""
    tower = qwen_tower(spatial_merge_size=1, tokens_per_second=2, depth=1, fullatt_block_indexes=[0])
    config = hf.Qwen2_5_VLConfig(
        text_config=text(num_hidden_layers=1, **mrope([6, 5, 5])), vision_config=tower, **QWEN_IDS
    )
    model = hf.Qwen2_5_VLModel(config)
    ids = torch.tensor([ids])
    kinds = (ids == IMAGE).long() + 2 * (ids == VIDEO).long()
    grid = torch.tensor(grids)
    place = {"video_grid_thw": grid, **video} if video else {"image_grid_thw": grid}
    return model.get_rope_index(ids, mm_token_type_ids=kinds, **place)[0][:, 0]


def pruned(
    grids: list[tuple[int, int, int]], generator: torch.Generator
) -> tuple[list[int], list[torch.Tensor], torch.Tensor]:
    """(ids, kept rows of each image, Long: places of what is left in the whole prompt)."""
    ids, kept, places, at = [TEXT] * 3, [], [0, 1, 2], 3
    for t, h, w in grids:
        n = t * h * w
        keep = torch.rand(n, generator=generator).argsort()[: int(torch.randint(1, n + 1, (), generator=generator))]
        kept.append(keep.sort().values)
        ids += [START, *[IMAGE] * len(keep), END, TEXT, TEXT]
        places += [at, *(at + 1 + kept[-1]).tolist(), at + 1 + n, at + 2 + n, at + 3 + n]
        at += n + 4
    return [*ids, TEXT], kept, torch.tensor([*places, at])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_kept_rows_have_the_positions_of_their_cells_whatever_the_chunks(count, early, dtype):
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        grids = [GRIDS[int(i)] for i in torch.randint(len(GRIDS), (count,), generator=generator)]
        ids, kept, places = pruned(grids, generator)
        expected = of_transformers(prompt(grids), grids)[:, places]
        visual = torch.tensor(ids) == IMAGE
        starts = [i for i, token in enumerate(ids) if token == IMAGE and ids[i - 1] == START]
        cells = [cells_of(g)[k] for g, k in zip(grids, kept, strict=True)]
        spans = [
            Span(start, len(k), extent_of(g), c if early else None)
            for start, k, g, c in zip(starts, kept, grids, cells, strict=True)
        ]
        positions, delta = lay_out(len(ids), spans)
        assert delta == int(expected[0, -1]) + 1 - len(ids)
        assert torch.equal(positions[:, ~visual], expected[:, ~visual])  # before anything is encoded
        rows = packed(torch.cat(cells)).to(dtype)  # as they travel
        borders = sorted({0, len(ids), *torch.randint(1, len(ids), (3,), generator=generator).tolist()})
        for begin, end in [*pairwise(borders), (borders[1], len(ids))]:  # in chunks, and again after preemption
            done = int(visual[:begin].sum())
            chunk = rows[done : done + int(visual[begin:end].sum())]
            positions = placed(positions, visual, unpacked(chunk), begin)
        assert torch.equal(positions, expected)


@pytest.mark.parametrize("seconds", [1.0, 2.0])
def test_frames_of_a_video_are_as_far_apart_as_in_transformers(seconds):
    grid, step = (3, 3, 9), seconds * 2  # no longer than wide: releases of transformers differ in what follows others
    ids = prompt([grid], VIDEO)
    expected = of_transformers(ids, [grid], second_per_grid_ts=torch.tensor([seconds]))
    positions, delta = lay_out(len(ids), [Span(4, 81, extent_of(grid, step), cells_of(grid, step))])
    assert torch.equal(positions, expected)
    assert delta == int(expected.max()) + 1 - len(ids)


def test_text_goes_on_behind_the_last_frame_of_a_long_video():
    grid, step = (4, 3, 5), 2.0
    positions, _ = lay_out(63, [Span(1, 60, extent_of(grid, step), cells_of(grid, step))])
    assert positions[:, -2:].tolist() == [[8, 9]] * 3  # frames at 1, 3, 5, 7


def test_fractions_of_a_second_are_rounded_down_after_they_are_multiplied():
    assert cells_of((4, 1, 1), 0.5 * 3)[:, 0].tolist() == [0, 1, 3, 4]
    assert extent_of((4, 1, 1), 0.5 * 3) == 5


def test_digits_are_exact_beyond_what_a_16_bit_number_holds():
    cells = torch.tensor([[0, 255, 256], [257, 65535, 40001]])
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        assert torch.equal(unpacked(packed(cells).to(dtype)), cells)


def test_a_frame_that_lost_all_rows_still_takes_its_time():
    spans = [Span(2, 0, 4, None), Span(4, 3, 4, None)]
    positions, delta = lay_out(9, spans)
    assert positions[0].tolist() == [0, 1, 6, 7, 8, 8, 8, 12, 13]
    assert delta == 14 - 9

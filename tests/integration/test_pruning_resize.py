"""The resize control: target grids, cells, and images that arrive as patches."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image

from vlmopt.pruning import Resize, VisualTokens
from vlmopt.pruning.resize import from_patches, grid_cells, resize_patches, target_grid, to_patches


def smooth(width: int, height: int) -> Image.Image:
    """An image without fine detail, so that every decent resampling of it agrees."""
    y, x = np.mgrid[0:height, 0:width] / 100.0
    channels = [np.sin(x + 0.5 * y), np.cos(1.3 * y - 0.4 * x), np.sin(0.7 * x) * np.cos(0.9 * y)]
    return Image.fromarray((np.stack(channels, -1) * 100 + 128).astype(np.uint8))


def processor(**size):
    module = pytest.importorskip("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl")
    return module.Qwen2VLImageProcessorPil(min_pixels=28 * 28, max_pixels=10**7, **size)


def test_target_grid_against_brute_force():
    def cost(h, w, h2, w2, budget):
        return 2 * math.log(budget / (h2 * w2)) + abs(math.log(h2 * w / (h * w2)))

    for h in range(1, 13):
        for w in range(1, 13):
            for budget in range(1, h * w + 3):
                h2, w2 = target_grid(h, w, budget)
                assert 1 <= h2 <= h
                assert 1 <= w2 <= w
                assert h2 * w2 <= budget
                if budget >= h * w:
                    assert (h2, w2) == (h, w)
                    continue
                every = [(a, b) for a in range(1, h + 1) for b in range(1, w + 1) if a * b <= budget]
                best = min(cost(h, w, a, b, budget) for a, b in every)
                assert cost(h, w, h2, w2, budget) == pytest.approx(best, abs=1e-9)


def test_target_grid_on_round_numbers():
    assert target_grid(16, 16, 64) == (8, 8)
    assert target_grid(16, 16, 256) == (16, 16)
    assert target_grid(24, 42, 252) == (12, 21)
    assert target_grid(1, 100, 10) == (1, 10)
    assert target_grid(40, 60, 1) == (1, 1)
    for bad in ((0, 4, 2), (4, 0, 2), (4, 4, 0)):
        with pytest.raises(ValueError, match=">= 1"):
            target_grid(*bad)


def test_large_grids_lose_little():
    for h, w in ((60, 80), (97, 101), (34, 19)):
        for ratio in (0.1, 0.25, 0.5, 0.9):
            budget = round(h * w * ratio)
            h2, w2 = target_grid(h, w, budget)
            assert h2 * w2 >= 0.9 * budget
            assert abs(math.log(h2 * w / (h * w2))) < 0.25


def test_grid_cells_against_brute_force():
    for h, w, h2, w2 in ((8, 8, 4, 4), (7, 9, 3, 2), (5, 5, 5, 5), (9, 4, 1, 1), (16, 10, 11, 7)):
        got = grid_cells(h, w, h2, w2).tolist()
        want = []
        for i in range(h2):
            for j in range(w2):
                y, x = (i + 0.5) * h / h2, (j + 0.5) * w / w2
                row = min(range(h), key=lambda r: (round(abs(r + 0.5 - y), 9), r))
                column = min(range(w), key=lambda c: (round(abs(c + 0.5 - x), 9), c))
                want.append(row * w + column)
        assert got == want == sorted(set(want))
    with pytest.raises(ValueError, match="does not fit"):
        grid_cells(4, 4, 5, 1)


@pytest.mark.parametrize(("merge", "patch"), [(2, 14), (1, 14), (2, 16)])
def test_patches_of_the_image_processor_can_be_undone(merge, patch):
    image = smooth(12 * patch, 8 * patch)
    out = processor(merge_size=merge, patch_size=patch)(images=[image], return_tensors="pt", do_normalize=False)
    assert out["image_grid_thw"].tolist() == [[1, 8, 12]]
    layout = (patch, merge, 2, 3)
    frames = from_patches(out["pixel_values"], [1, 8, 12], layout)
    want = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1) / 255
    assert torch.allclose(frames, want.expand(2, -1, -1, -1), atol=1e-6)
    assert torch.equal(to_patches(frames, [1, 8, 12], layout), out["pixel_values"])


def test_resizing_patches_is_like_processing_a_smaller_image():
    process = processor()
    given = [smooth(20 * 14, 16 * 14), smooth(12 * 14, 12 * 14), smooth(8 * 14, 4 * 14)]
    sizes = [(10, 8), (8, 6), (8, 4)]
    out = process(images=given, return_tensors="pt")
    small = process(
        images=[p.resize((w * 14, h * 14), Image.Resampling.BICUBIC) for p, (w, h) in zip(given, sizes, strict=True)],
        return_tensors="pt",
    )
    got = resize_patches(out["pixel_values"], out["image_grid_thw"], small["image_grid_thw"], 14, 2, 2)
    assert got.shape == small["pixel_values"].shape
    assert (got - small["pixel_values"]).abs().max() < 0.03  # values run over 4; one step of 8 bits is 0.015
    kept = 8 * 4
    assert torch.equal(got[-kept:], out["pixel_values"][-kept:])  # the third image keeps its grid and its bits


def test_frames_of_a_video_do_not_mix():
    frames = torch.rand(4, 3, 56, 56)
    layout = (14, 2, 2, 3)
    whole = to_patches(frames, [2, 4, 4], layout)
    changed = frames.clone()
    changed[2:] = 0
    a = resize_patches(whole, [[2, 4, 4]], [[2, 2, 2]], 14, 2, 2)
    b = resize_patches(to_patches(changed, [2, 4, 4], layout), [[2, 4, 4]], [[2, 2, 2]], 14, 2, 2)
    assert torch.equal(a[:4], b[:4])
    assert not torch.equal(a[4:], b[4:])


def test_resizing_stays_in_range_and_in_dtype():
    frames = (torch.rand(2, 3, 84, 84) > 0.5).float()  # the hardest edges: bicubic overshoots
    patches = to_patches(frames, [1, 6, 6], (14, 2, 2, 3)).bfloat16()
    out = resize_patches(patches, torch.tensor([[1, 6, 6]]), torch.tensor([[1, 4, 2]]), 14, 2, 2)
    assert out.dtype == torch.bfloat16
    assert out.min() >= 0
    assert out.max() <= 1
    grey = resize_patches(torch.rand(36, 2 * 196), [[1, 6, 6]], [[1, 2, 2]], 14, 2, 2, channels=1)
    assert grey.shape == (4, 392)


@pytest.mark.parametrize(
    ("patches", "old", "new", "match"),
    [
        ((35, 1176), [[1, 6, 6]], [[1, 4, 4]], "do not fit"),
        ((36, 1000), [[1, 6, 6]], [[1, 4, 4]], "do not fit"),
        ((36, 1176), [[1, 6, 6]], [[1, 3, 4]], "multiples of merge_size=2"),
        ((36, 1176), [[1, 6, 6]], [[1, 0, 4]], "multiples"),
        ((36, 1176), [[1, 6, 6]], [[2, 4, 4]], "frames"),
        ((36, 1176), [[1, 6, 6]], [[1, 4, 4], [1, 2, 2]], "as many images"),
    ],
)
def test_grids_that_do_not_fit(patches, old, new, match):
    with pytest.raises(ValueError, match=match):
        resize_patches(torch.rand(patches), old, new, 14, 2, 2)


def test_select_keeps_the_cells_of_the_small_grids():
    grids = ((1, 6, 8), (3, 4, 4))
    coords = torch.cat([torch.cartesian_prod(*map(torch.arange, grid)) for grid in grids])
    item = torch.tensor([0] * 48 + [1] * 48)
    tokens = VisualTokens(96, torch.arange(96), item, coords, grids, {}, 0)
    method = Resize(keep_ratio=0.25)
    selection = method.select(tokens)
    want = grid_cells(6, 8, 3, 4).tolist()
    want += [48 + 16 * t + cell for t in range(3) for cell in grid_cells(4, 4, 2, 2).tolist()]
    assert selection.keep.tolist() == want
    assert selection.stats == {"requested": 24, "actual": 24}
    assert method.grid(1, 6, 8) == (3, 4)
    unknown = VisualTokens(96, torch.arange(96), item, torch.full_like(coords, -1), (None, None), {}, 0)
    with pytest.raises(ValueError, match="no known patch grid"):
        method.select(unknown)

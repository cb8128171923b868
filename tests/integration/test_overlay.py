"""The image of a selection tells kept, dropped and marked cells apart, for every kind of grid."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from vlmopt.overlay import ACCENT, GAP, MARKER, PANEL_WIDTH, overlay
from vlmopt.reporting import VisualMap


def visual_map(
    kept: list[int],
    grid: tuple[int, int, int] | None,
    n: int = 16,
    kind: str = "image",
    markers: tuple[int, ...] = (),
    merged: tuple[int, ...] = (),
) -> VisualMap:
    coords = torch.full((n, 3), -1)
    if grid is not None:
        cells = torch.cartesian_prod(*(torch.arange(side) for side in grid))
        coords[: len(cells)] = cells
    flags, marked, mixed = torch.zeros(3, n, dtype=torch.bool)
    flags[kept] = True
    marked[list(markers)] = True
    mixed[list(merged)] = True
    return VisualMap(0, kind, grid, coords, flags, marked, mixed, torch.full((n,), -1), torch.arange(n).float())


def cell(sheet: Image.Image, y: int, x: int, side: int = 4) -> np.ndarray:
    """Inner pixels of one cell of the first panel."""
    size = PANEL_WIDTH // side
    pixels = np.asarray(sheet)[GAP + y * size : GAP + (y + 1) * size, GAP + x * size : GAP + (x + 1) * size]
    return pixels[size // 8 : -size // 8, size // 8 : -size // 8].astype(float)


def white() -> Image.Image:
    return Image.new("RGB", (64, 64), "white")


def test_kept_cells_are_clear_and_dropped_ones_dim() -> None:
    sheet = overlay(white(), [visual_map([5], (1, 4, 4))])
    assert cell(sheet, 1, 1).min() == 255
    assert cell(sheet, 0, 0).max() < 170
    assert cell(sheet, 0, 0).std() > 1  # hatched
    assert tuple(np.asarray(sheet)[GAP + PANEL_WIDTH // 4, GAP + PANEL_WIDTH // 4 + 20]) == ACCENT


def test_markers_are_dotted() -> None:
    sheet = overlay(white(), [visual_map([0], (1, 4, 4), markers=(5,))])
    middle = cell(sheet, 1, 1)
    assert tuple(middle[middle.shape[0] // 2, middle.shape[1] // 2]) == MARKER


def test_merged_tokens_carry_a_square() -> None:
    sheet = overlay(white(), [visual_map([0, 5], (1, 4, 4), merged=(5, 6))])
    middle, gone = cell(sheet, 1, 1), cell(sheet, 1, 2)
    corner = middle.shape[0] // 2 - middle.shape[0] // 6 + 1
    assert tuple(middle[middle.shape[0] // 2, middle.shape[1] // 2]) == MARKER
    assert tuple(middle[corner, corner]) == MARKER
    assert tuple(gone[gone.shape[0] // 2, gone.shape[1] // 2]) != MARKER  # left at a later cut


def test_heat_colours_by_rank_and_ignores_tokens_without_a_score() -> None:
    part = visual_map([0], (1, 4, 4))
    part.scores[3] = float("nan")
    sheet = overlay(white(), [part], heat=True)
    assert np.ptp(cell(sheet, 0, 3)) == 0
    assert cell(sheet, 0, 3).min() == 255
    low, high = cell(sheet, 0, 1).mean((0, 1)), cell(sheet, 3, 3).mean((0, 1))
    assert high[1] > low[1] + 100  # from blue to yellow


def test_the_image_keeps_its_aspect() -> None:
    wide = overlay(Image.new("RGB", (200, 100)), [visual_map([0], (1, 2, 8))])
    tall = overlay(Image.new("RGB", (100, 200)), [visual_map([0], (1, 8, 2))])
    assert wide.width == tall.width == PANEL_WIDTH + 2 * GAP
    assert tall.height > 3 * wide.height


def test_tokens_beside_the_grid_are_counted_not_drawn() -> None:
    newline_kept = visual_map([0, 17], (1, 4, 4), n=20)
    assert cell(overlay(white(), [newline_kept]), 0, 0).min() == 255


def test_frames_tiles_and_unknown_grids() -> None:
    video = visual_map([0, 9], (4, 2, 2), kind="video")
    tiles = [visual_map([i], (1, 4, 4), kind="tile") for i in range(5)]
    frames = overlay([white()] * 4, [video])
    mosaic = overlay(white(), tiles)
    strip = overlay(white(), [visual_map([1, 2], None)])
    assert frames.width > 4 * (PANEL_WIDTH // 2)
    assert mosaic.height > 2 * (PANEL_WIDTH // 2)  # the image and five tiles need a second row
    assert cell(strip, 0, 0).min() == 255  # the image itself, then the strip beside it
    assert strip.width > PANEL_WIDTH


def test_an_overview_and_its_single_detail_tile_share_the_image() -> None:
    every = list(range(16))
    parts = [visual_map(every, (1, 4, 4)), visual_map(every, (1, 4, 4), kind="tile")]
    sheet = np.asarray(overlay(Image.new("RGB", (64, 64), "red"), parts))
    half = PANEL_WIDTH // 2
    for left in (GAP, 2 * GAP + half):
        assert tuple(sheet[GAP + half // 8, left + half // 8]) == (255, 0, 0)


def test_several_images_take_their_own_maps() -> None:
    red, blue = Image.new("RGB", (64, 64), "red"), Image.new("RGB", (64, 64), "blue")
    sheet = np.asarray(overlay([red, blue], [visual_map(list(range(16)), (1, 4, 4)) for _ in range(2)]))
    half = PANEL_WIDTH // 2
    assert tuple(sheet[GAP + half // 8, GAP + half // 8]) == (255, 0, 0)
    assert tuple(sheet[GAP + half // 8, 2 * GAP + half + half // 8]) == (0, 0, 255)


def test_nothing_to_draw_is_refused() -> None:
    with pytest.raises(ValueError, match="no visual tokens"):
        overlay(white(), [])


def test_clicks_are_ringed_at_their_place() -> None:
    plain, clicked = (overlay(white(), [visual_map([5], (1, 4, 4))], clicks=clicks) for clicks in ((), [(0.5, 0.25)]))
    ys, xs = np.nonzero((np.asarray(plain)[:-48] != np.asarray(clicked)[:-48]).any(-1))
    width, height = plain.width - 2 * GAP, plain.height - 48 - 2 * GAP
    assert abs((xs.min() + xs.max()) / 2 - GAP - 0.5 * width) <= 2
    assert abs((ys.min() + ys.max()) / 2 - GAP - 0.25 * height) <= 2

"""The pure parts of a second look: contrast, areas, boxes, the second image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from vlmopt.looking.areas import box_of, components, window
from vlmopt.looking.looks import contrast, ratio, why_flat
from vlmopt.looking.refine import cropped, masked

QUESTION = torch.tensor([0.1, 0.4, 0.1, 0.1, 0.2, 0.1], dtype=torch.float64)
GENERAL = torch.tensor([0.1, 0.1, 0.1, 0.1, 0.5, 0.1], dtype=torch.float64)


def test_ratios_have_a_lambda_of_a_twentieth_of_uniform_attention() -> None:
    expected = torch.tensor([0.923077, 3.692308, 0.923077, 0.923077, 0.393443, 0.923077], dtype=torch.float64)
    torch.testing.assert_close(ratio(QUESTION, GENERAL), expected, atol=1e-6, rtol=0)


def test_later_tokens_of_an_answer_count_more() -> None:
    question = torch.stack([QUESTION, GENERAL])[:, None].expand(2, 3, 6)
    general = GENERAL.expand(2, 3, 6)
    expected = 3 * (ratio(QUESTION, GENERAL) + 2 * ratio(GENERAL, GENERAL))
    torch.testing.assert_close(contrast(question, general), expected)


@pytest.mark.parametrize("factor", [0.01, 1.0, 40.0])
def test_a_factor_on_all_maps_of_the_question_changes_nothing(factor: float) -> None:
    question, general = torch.rand(2, 3, 2, 36, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    heats = [contrast(c * question, general).view(6, 6).float().numpy() for c in (1.0, factor)]
    assert (components(heats[0], 0.3, 3) == components(heats[1], 0.3, 3)).all()
    assert (window(heats[0]) == window(heats[1])).all()
    alone = contrast(general, general)
    assert why_flat(contrast(factor * question, general), alone) is None
    assert why_flat(contrast(factor * general, general), alone) is not None


@pytest.mark.parametrize(
    ("score", "why"),
    [
        ([1.0, float("nan"), 2.0], "not finite"),
        ([0.0, 0.0, 0.0], "empty"),
        ([2.0, 2.0, 2.0], "flat"),
        ([0.9, 0.5, 0.7], "nowhere"),
    ],
)
def test_maps_that_point_nowhere_say_why(score: list[float], why: str) -> None:
    assert why in str(why_flat(torch.tensor(score), torch.tensor([1.8, 1.0, 1.4])))


def heat(*rows: str) -> np.ndarray:
    """A digit per pixel; a dot is a pixel without a value."""
    return np.array([[float("nan") if c == "." else float(c) for c in row] for row in rows], dtype=np.float32)


def test_components_are_ranked_by_the_sum_of_the_heat_not_by_area() -> None:
    found = components(heat("550009", "550009", "000000", "001110"), 9 / 24, 1)  # 4 x 5 = 20, 2 x 9 = 18, 3 x 1 = 3
    assert box_of(found) == (0, 0, 2, 2)
    found = components(heat("440009", "440009", "000000", "001110"), 9 / 24, 1)  # 16 against 18
    assert box_of(found) == (5, 0, 6, 2)
    assert box_of(components(heat("440009", "440009", "000000", "001110"), 9 / 24, 2)) == (0, 0, 6, 2)


def test_neighbours_lie_along_sides_not_corners() -> None:
    diagonal = heat("90000", "08000", "00000", "00000")
    assert components(diagonal, 2 / 20, 1).sum() == 1
    assert components(diagonal, 2 / 20, 2).sum() == 2


def test_pixels_without_a_value_are_never_kept_and_do_not_count() -> None:
    found = components(heat("..9922..", "..9922.."), 0.5, 3)
    assert box_of(found) == (2, 0, 4, 2)
    nothing = components(heat("...", "..."), 0.5, 3)
    assert not nothing.any()
    assert box_of(nothing) is None
    assert not window(heat("...", "...")).any()


def test_the_whole_share_keeps_everything_in_one_component() -> None:
    rng = np.random.default_rng(0)
    assert components(rng.random((9, 7)).astype(np.float32), 1.0, 1).all()


def test_the_window_lies_on_the_hot_spot() -> None:
    spot = np.full((32, 48), 0.1, dtype=np.float32)
    spot[16:24, 24:36] = 3.0  # a quarter of both sides
    assert box_of(window(spot)) == (24, 16, 36, 24)


def test_the_window_has_what_is_smaller_in_its_middle() -> None:
    spot = np.zeros((40, 40), dtype=np.float32)
    spot[18:22, 18:22] = 1.0
    assert box_of(window(spot)) == (15, 15, 25, 25)


def noise(width: int, height: int) -> Image.Image:
    rng = np.random.default_rng(width)
    return Image.fromarray(rng.integers(1, 256, (height, width, 3), dtype=np.uint8))


def test_outside_the_mask_all_is_black_and_a_full_mask_is_the_image_itself() -> None:
    image, pixels = noise(40, 30), np.zeros((30, 40), dtype=bool)
    pixels[5:10, 20:30] = True
    shown = np.asarray(masked(image, pixels))
    assert (shown[pixels] == np.asarray(image)[pixels]).all()
    assert not shown[~pixels].any()
    assert masked(image, np.ones((30, 40), dtype=bool)) is image
    with pytest.raises(ValueError, match="does not fit"):
        masked(image, pixels.T)


def test_the_cut_keeps_its_aspect_and_covers_the_size_of_the_image() -> None:
    image, pixels = noise(400, 300), np.ones((300, 400), dtype=bool)
    pixels[:, 300:] = False
    assert cropped(image, pixels, (100, 50, 200, 150), 10**9).size == (400, 400)
    assert cropped(image, pixels, (100, 50, 200, 150), 400 * 300).size == (346, 346)
    assert cropped(image, np.ones((300, 400), dtype=bool), (0, 0, 400, 300), 10**9) is image

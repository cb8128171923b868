"""Where an answer clicks, in fractions of the picture, in the units of the model's type."""

from __future__ import annotations

from PIL import Image

from vlmopt.analysis.click import click_of
from vlmopt.loading import load


def test_points_of_a_qwen_count_pixels_behind_its_processor() -> None:
    loaded = load("tiny-qwen")
    picture = Image.new("RGB", (448, 448), "white")  # the processor makes it 280 x 280
    assert click_of(loaded, picture, "(70, 210)") == (0.25, 0.75)
    assert click_of(loaded, picture, "Save") is None
    assert click_of(loaded, picture, "(500, 10)") is None


def test_a_processor_without_a_grid_counts_pixels_of_the_picture() -> None:
    loaded = load("tiny-llava")
    assert click_of(loaded, Image.new("RGB", (224, 112)), "(56, 56)") == (0.25, 0.5)

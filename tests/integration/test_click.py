"""Where an answer clicks, in fractions of the image, in the units of the model's type."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from PIL import Image

from vlmopt.analysis.click import click_of
from vlmopt.choices import UNITS
from vlmopt.evaluation.prompts import POINT_PROMPTS
from vlmopt.families import click_units, families
from vlmopt.loading import load


def test_points_of_a_qwen_count_pixels_behind_its_processor() -> None:
    loaded = load("tiny-qwen")
    image = Image.new("RGB", (448, 448), "white")  # the processor makes it 280 x 280
    assert click_of(loaded, image, "(70, 210)") == (0.25, 0.75)
    assert click_of(loaded, image, "Save") is None
    assert click_of(loaded, image, "(500, 10)") is None


def test_an_unknown_type_says_no_click_unless_its_units_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, image = load("tiny-llava"), Image.new("RGB", (200, 100))
    monkeypatch.setattr("vlmopt.analysis.click.click_units", lambda config: None)
    assert click_of(loaded, image, "(50, 50)") is None
    assert click_of(loaded, image, "(500, 500)", "thousand") == (0.5, 0.5)
    assert click_of(loaded, image, "(50%, 50%)") == (0.5, 0.5)


@pytest.mark.parametrize(
    ("model_type", "units"),
    [
        ("qwen2_vl", "thousand"), ("qwen2_5_vl", "resized"), ("qwen3_vl", "thousand"), ("qwen3_vl_moe", "thousand"),
        ("qwen3_5", "thousand"), ("qwen3_5_moe", "thousand"), ("internvl", "thousand"), ("llava", "unit"),
        ("paligemma", "loc"), ("gemma3", None), ("no_such_type", None),
    ],
)  # fmt: skip
def test_families_say_in_what_they_count(model_type: str, units: str | None) -> None:
    assert click_units(SimpleNamespace(model_type=model_type)) == units
    assert click_units(SimpleNamespace(model_type=model_type, click_units="pixels")) == "pixels"
    with pytest.raises(ValueError, match="click_units='percent' in the model's config is unknown: choose from pixels"):
        click_units(SimpleNamespace(model_type=model_type, click_units="percent"))


def test_every_unit_of_a_family_is_one() -> None:
    assert {family.click_units for family in families().values()} <= {None, *UNITS}
    assert set(POINT_PROMPTS) == set(UNITS)


def test_a_processor_without_a_grid_counts_pixels_of_the_image() -> None:
    loaded = load("tiny-llava")
    assert click_of(loaded, Image.new("RGB", (224, 112)), "(56, 56)") == (0.25, 0.5)

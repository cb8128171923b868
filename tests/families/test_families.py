"""Family descriptions are data: their paths must exist, and an undescribed family must be served or refused."""

from __future__ import annotations

import copy
import functools
from types import SimpleNamespace

import pytest
import torch

import vlmopt
from tests.support.families import FAMILIES, Image
from vlmopt.families import families, family_of, layouts
from vlmopt.pruning import Uniform


@pytest.mark.parametrize("name", [n for n, f in FAMILIES.items() if f.model_class is not None])
def test_described_paths_exist(name):
    model = FAMILIES[name].build()
    described = family_of(model.config)
    assert described.described
    for path in (described.vision_tower, described.projector):
        assert isinstance(functools.reduce(getattr, path.split("."), model), torch.nn.Module), path


def test_every_promised_family_has_a_description():
    promised = {name for name, family in FAMILIES.items() if not family.extra}
    assert promised <= families().keys()


def test_an_undescribed_family_takes_the_generic_path_and_says_so():
    family = FAMILIES["llava"]
    model, batch = copy.deepcopy(family.build()), family.inputs([[5, Image(0), 7]])
    with vlmopt.optimized(model, Uniform(keep_ratio=0.5)):
        expected = model(**batch()).logits
    model.config.model_type = "nobody_described_this"
    with vlmopt.optimized(model, Uniform(keep_ratio=0.5)):
        assert torch.equal(model(**batch()).logits, expected)
        assert "undescribed" in vlmopt.report(model).family


def test_a_model_that_cannot_be_read_is_refused_with_the_families():
    with pytest.raises(ValueError, match=r"qwen2_5_vl.*CONTRIBUTING"):
        vlmopt.optimize(torch.nn.Linear(2, 2), "uniform-25")


@pytest.mark.parametrize(
    ("length", "size", "grid"), [(5 * 4, (80, 60), (5, 3)), (6 * 3, (200, 70), (6, 2)), (4, (8, 30), (1, 3))]
)
def test_unpadded_details_are_read_from_length_and_aspect(length, size, grid):
    assert layouts.detail_shape(length, size) == grid


def test_newline_tokens_are_no_cells():
    config = SimpleNamespace(vision_config=SimpleNamespace(image_size=28, patch_size=14))
    overview, detail = layouts.any_resolution("image", [4 + 3 * 5], {"image_sizes": torch.tensor([[60, 80]])}, config)
    assert overview.grid == (1, 2, 2)
    assert detail.grid == (1, 3, 4)
    assert detail.coords.view(3, 5, 3)[:, 4].eq(-1).all()
    assert detail.coords.view(3, 5, 3)[:, :4].ge(0).all()


@pytest.mark.parametrize("returned", [2 * 9, 2 * 9 + 1], ids=["newline appended afterwards", "newline inside"])
def test_frames_of_a_video_end_with_one_newline(returned):
    config = SimpleNamespace(vision_config=SimpleNamespace(image_size=28, patch_size=14))
    (piece,) = layouts.any_resolution("video", [returned], {"pixel_values": torch.zeros(1, 2, 3, 28, 28)}, config)
    assert piece.length == 2 * 9 + 1
    assert piece.grid == (2, 3, 3)
    assert piece.coords[-1].eq(-1).all()
    assert piece.coords[:-1].ge(0).all()

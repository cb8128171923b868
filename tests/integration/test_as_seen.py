"""Overlays lie on what the tower got: padded squares, cropped middles, or the image itself."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import vlmopt
from vlmopt.prompt import as_seen


def drawn(width: int, height: int) -> Image.Image:
    """Every pixel differs from its neighbours."""
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x % 256, y % 256, (x + y) % 256], -1).astype(np.uint8))


def processor(**settings: Any) -> Any:
    return SimpleNamespace(image_processor=SimpleNamespace(**settings))


@pytest.mark.parametrize(("width", "height"), [(224, 140), (140, 224), (224, 224), (300, 100)])
def test_padded_squares_are_those_of_the_processor(width, height):
    _, stock = vlmopt.load_checkpoint("tiny-llava")
    image = drawn(width, height)
    seen = as_seen(stock, image)
    assert seen.size == (max(width, height),) * 2
    how = stock.image_processor
    pixels = how(image, return_tensors="pt")["pixel_values"][0]
    shown = torch.from_numpy(np.array(seen.resize((224, 224), Image.Resampling.BICUBIC))).permute(2, 0, 1) / 255
    mean, std = (torch.tensor(v)[:, None, None] for v in (how.image_mean, how.image_std))
    assert (shown - (pixels * std + mean)).abs().max() < 0.02


def test_the_middle_is_cropped_as_by_default_in_llava():
    how = {"do_center_crop": True, "size": {"shortest_edge": 336}, "crop_size": {"width": 336, "height": 336}}
    image = drawn(400, 200)
    assert as_seen(processor(**how), image).tobytes() == image.crop((100, 0, 300, 200)).tobytes()
    how["crop_size"] = {"width": 168, "height": 336}
    assert as_seen(processor(**how), image).size == (100, 200)


@pytest.mark.parametrize("how", [{}, {"do_pad": True}, {"size": {"shortest_edge": 56, "longest_edge": 99}}])
def test_other_images_stay_as_they_are(how):
    image = drawn(60, 40)
    assert as_seen(processor(**how), image) is image

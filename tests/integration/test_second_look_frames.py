"""A mask over an image reaches the frames that its processor makes of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

import vlmopt
from vlmopt.looking.frames import frame_mask, frames

SIZE = (224, 168)


def image(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*SIZE[::-1], 3), dtype=np.uint8))


def right_half() -> np.ndarray:
    pixels = np.zeros(SIZE[::-1], dtype=bool)
    pixels[:, 112:] = True
    return pixels


def test_patches_of_the_right_half() -> None:
    _, processor = vlmopt.load_checkpoint("tiny-qwen")
    (frame,) = frames(processor, image())
    keep = frame_mask(processor, image(), right_half())(frame)
    assert keep.shape == frame.shape
    side = processor.image_processor.patch_size
    merge = processor.image_processor.merge_size
    rows, columns = (length // side for length in SIZE[::-1])
    assert len(frame) == rows * columns
    patch = torch.arange(rows * columns).view(rows // merge, columns // merge, merge, merge).permute(0, 2, 1, 3)
    share = torch.empty(rows, columns)
    share.view(-1)[:] = keep.mean(1)[patch.reshape(-1)]
    assert (share[:, : columns // 2] == 0).all()
    assert (share[:, columns // 2 :] == 1).all()


def test_a_padded_square_keeps_the_right_half_without_its_bars() -> None:
    _, processor = vlmopt.load_checkpoint("tiny-llava")
    (frame,) = frames(processor, image())
    mask = frame_mask(processor, image(), right_half())
    keep = mask(frame)
    side = frame.shape[-1]
    bar = round(side * (1 - SIZE[1] / SIZE[0]) / 2)
    inner = keep[:, bar + 2 : side - bar - 2]
    assert (inner[..., side // 2 + 2 :] == 1).all()
    assert (inner[..., : side // 2 - 2] == 0).all()
    assert (keep[:, : bar - 2] == 0).all()
    assert torch.equal(mask(frame.bfloat16()).float(), keep)


def test_pixels_of_another_image_and_masks_of_another_size_are_refused() -> None:
    _, processor = vlmopt.load_checkpoint("tiny-qwen")
    mask = frame_mask(processor, image(), right_half())
    with pytest.raises(ValueError, match="not of the image"):
        mask(frames(processor, image(1))[0])
    with pytest.raises(ValueError, match="does not fit"):
        frame_mask(processor, image(), right_half().T)

"""A mask over an image reaches the frames that its processor makes of it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image

import vlmopt
from vlmopt.decoding import LocalContrast
from vlmopt.looking.focus import focus
from vlmopt.looking.frames import frame_mask, frames
from vlmopt.prompt import image_prompt
from vlmopt.synthetic import scene

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


@pytest.mark.parametrize("name", ["tiny-qwen", "tiny-llava"])
def test_local_contrast_takes_the_mask_of_a_look(name: str) -> None:
    """The first step's scores are the sum of two plain models, of which one sees only what the question looks at."""
    shown = scene(901_000_003, SIZE).image
    question = "Describe the image."
    model, processor = vlmopt.load_checkpoint(name)
    found = focus(model, processor, shown, question, max_new_tokens=4)
    assert found.pixels.any()
    assert not found.pixels.all()
    mask = frame_mask(processor, shown, found.pixels)
    whole = image_prompt(processor, question, [shown])
    (frame,) = frames(processor, shown)
    keep = mask(frame)
    if "image_grid_thw" in whole:  # both temporal copies
        copies = whole["pixel_values"].view(len(frame), -1, 2, processor.image_processor.patch_size**2)
        keep = keep.view(len(frame), copies.shape[1], 1, -1).expand_as(copies).flatten(1)
    part = {**whole, "pixel_values": whole["pixel_values"] * keep.view_as(whole["pixel_values"])}
    with torch.no_grad():
        v, seen = (model(**inputs).logits[:, -1].log_softmax(-1) for inputs in (whole, part))
    method = LocalContrast(a=2.0, cutoff=0.1, mask=mask)
    with vlmopt.optimized(model, [method]), torch.no_grad():
        out = model.generate(
            **whole, max_new_tokens=1, do_sample=False, return_dict_in_generate=True, output_scores=True
        )
    (scores,) = out.scores
    among = scores > -torch.inf
    assert torch.equal(among, v >= v.amax(-1, keepdim=True) + math.log(method.cutoff))
    gaps = scores - (v + method.a * seen) / (1 + method.a)
    assert (gaps[among] - gaps[among].mean()).abs().max() < 1e-4  # logits, up to a constant
    assert not torch.allclose(v[among], seen[among], atol=1e-3)


def test_pixels_of_another_image_and_masks_of_another_size_are_refused() -> None:
    _, processor = vlmopt.load_checkpoint("tiny-qwen")
    mask = frame_mask(processor, image(), right_half())
    with pytest.raises(ValueError, match="not of the image"):
        mask(frames(processor, image(1))[0])
    with pytest.raises(ValueError, match="does not fit"):
        frame_mask(processor, image(), right_half().T)

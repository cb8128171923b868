"""Bring a mask over an image to the frames that its processor makes of it: squares, tiles, or patches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..prompt import image_prompt
from .areas import Mask


def frame_mask(processor: Any, image: Image.Image, pixels: Mask) -> Callable[[Tensor], Tensor]:
    """Return a function that masks frames of this image as a model takes them, such as `local_contrast` asks for.

    Args:
        image: RGB, as it is in the prompt. pixels: Bool [height, width] of it, such as `focus(...).pixels`.

    Returns:
        (one frame [C, h, w], or [patches, values] of one temporal copy) -> 1 inside the mask and 0 outside, of its
        shape. It raises `ValueError` for a frame that is not of this image. Padding around the image is outside.

    Raises:
        ValueError: a mask of another size, or a processor that lays pixels otherwise.
    """
    if pixels.shape != image.size[::-1]:
        raise ValueError(f"a mask of {pixels.shape} (height, width) does not fit an image of {image.size[::-1]}")
    how = processor.image_processor
    white = Image.fromarray(pixels).convert("RGB")
    own, shown = frames(processor, image), frames(processor, white)
    mean, std = (torch.tensor(values)[:, None] for values in (how.image_mean, how.image_std))
    masks = [(frame.unflatten(-1, (len(mean), -1)) if frame.ndim == 2 else frame.flatten(1)) for frame in shown]
    inside = [(part * std + mean > 0.5).view_as(frame) for part, frame in zip(masks, shown, strict=True)]

    def mask(frame: Tensor) -> Tensor:
        place = tuple(slice(0, side) for side in frame.shape)  # what fills up a batch may be missing at its ends
        for known, keep in zip(own, inside, strict=True):
            part = known[place]
            if part.shape == frame.shape and torch.equal(part.to(frame), frame):
                return keep[place].to(frame)
        raise ValueError("these pixels are not of the image that the mask was made for; make one for each image")

    return mask


def frames(processor: Any, image: Image.Image) -> list[Tensor]:
    """Return what the processor makes of an image: [C, h, w] each, or [patches, C * p * p] of one temporal copy."""
    inputs = image_prompt(processor, "", [image])
    pixels: Tensor = inputs["pixel_values"]
    if "image_grid_thw" in inputs and pixels.ndim == 2:
        copies, side = processor.image_processor.temporal_patch_size, processor.image_processor.patch_size
        return [pixels.view(len(pixels), -1, copies, side**2)[:, :, 0].flatten(1)]
    if pixels.ndim < 4:
        raise ValueError(
            f"{type(processor.image_processor).__name__} lays pixels as {tuple(pixels.shape)}, under which a mask is "
            "not known; use a model that takes squares, tiles or Qwen's patches"
        )
    return list(pixels.flatten(0, -4))

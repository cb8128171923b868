"""What a second stream sees in the place of an image: pixels changed frame by frame, however a processor lays them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..decoding import SeesPixels
from .arguments import PIXELS
from .call import Session

SIDE_BY_SIDE = "target_sizes"  # MiniCPM-V lays all images beside one another
NOTHING = 1e-31  # instead of 0: times a weight it is no subnormal number, on which CPUs are many times slower
Change = Callable[[Tensor], Tensor]


def changed(session: Session, modality: str, bound: Mapping[str, Any], method: SeesPixels) -> dict[str, Any]:
    """Return the pixels among the arguments of a feature function as the second stream sees them, by name.

    Raises:
        ValueError: patches of all images in one list, and no grid that tells them apart.
    """
    name = next((name for name in PIXELS[modality] if bound.get(name) is not None), None)
    if name is None:
        return {}

    def change(frame: Tensor) -> Tensor:
        return within(frame, method, session.policy.seed)

    def tensors(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return type(value)(tensors(entry) for entry in value)
        grid = bound.get(f"{modality}_grid_thw")
        if grid is not None:
            return patches(value.flatten(1), grid, session.model.config.vision_config, change).view_as(value)
        if value.ndim > 2 and not session.family.sizes.get(modality, "").startswith(SIDE_BY_SIDE):
            return every(value, change)
        raise ValueError(
            f"pixels of all images of {session.model.config.model_type} come as one, so they cannot be told apart; use "
            "text_contrast"
        )

    return {name: tensors(bound[name])}


def every(pixels: Tensor, change: Change) -> Tensor:
    """Change every frame of pixels [..., C, h, w], or every image of patches [N, patches, values]."""
    frame = pixels.ndim - 3 if pixels.ndim > 3 else 1
    flat = pixels.flatten(0, frame - 1)
    return torch.stack([change(one) for one in flat]).view_as(pixels)


def patches(pixels: Tensor, grid: Tensor, vision: Any, change: Change) -> Tensor:
    """Change every frame of patches [P, C * copies * p * p], of which each holds `copies` frames of one place.

    A still image stands in all of them, and is changed alike there: a frame's own pixels decide how.

    Args:
        grid: Long[images, 3] (t, h, w) in patches. vision: config of the tower.
    """
    images = []
    for (t, h, w), image in zip(grid.tolist(), pixels.split(grid.prod(1).tolist()), strict=True):
        split = image.view(t, h * w, -1, getattr(vision, "temporal_patch_size", 1), vision.patch_size**2)
        frames = split.permute(0, 3, 1, 2, 4)  # [t, copies, patches, C, p * p]
        done = torch.stack([change(one.flatten(1)) for one in frames.flatten(0, 1)]).view(frames.shape)
        images.append(done.permute(0, 2, 3, 1, 4).reshape(image.shape))
    return torch.cat(images)


def within(frame: Tensor, method: SeesPixels, seed: int) -> Tensor:
    """Change one frame [C, h, w] or [patches, values], but not the 0 with which a batch was padded at its ends.

    Some models take a tile of nothing but 0 for padding and leave it out, so that no value becomes 0.
    """
    nothing = max(torch.finfo(frame.dtype).tiny, NOTHING)
    filled = (frame != 0).any(0) if frame.ndim == 3 else (frame != 0).any(1)
    if not bool(filled.any()):
        return frame
    ends = [int(places.max()) + 1 for places in filled.nonzero().T]
    part = frame[:, : ends[0], : ends[1]] if frame.ndim == 3 else frame[: ends[0]]
    new = method.change(part, lambda: noise(part, seed))
    out = frame.clone()
    out[tuple(map(slice, part.shape))] = torch.where(new == 0, nothing, new)
    return out


def noise(frame: Tensor, seed: int) -> Tensor:
    """Return standard normal numbers fp32 of a frame's shape, the same for the same pixels and policy's seed."""
    pixels = frame.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
    digest = hashlib.blake2b(pixels, digest_size=8, key=seed.to_bytes(8, "big")).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
    return torch.randn(frame.shape, generator=generator, dtype=torch.float32).to(frame.device)

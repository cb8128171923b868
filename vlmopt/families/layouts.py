"""Lay encoder output out on a grid, for the families whose items are not simply square."""

from __future__ import annotations

import math
from typing import Any

import torch

from .base import Grid, Piece, cells, plain, square, square_grid


def patch_grid(modality: str, lengths: list[int], arguments: dict[str, Any], config: Any) -> list[Piece]:
    """Lay out for Qwen-VL and others: the processor states (t, h, w) in patches; merge x merge of them are joined.

    VideoLLaMA3 says so for each image, ERNIE joins two frames of a video as well.
    """
    grids, merges = arguments.get(f"{modality}_grid_thw"), arguments.get(f"{modality}_merge_sizes")
    if grids is None or len(grids) != len(lengths):
        return [plain(n, modality, None) for n in lengths]
    vision = config.vision_config
    sides = [vision.spatial_merge_size] * len(lengths) if merges is None else merges.tolist()
    frames = getattr(vision, "temporal_merge_size", 1) if modality == "video" else 1
    return [
        plain(n, modality, (t // frames, h // m, w // m))
        for n, (t, h, w), m in zip(lengths, grids.tolist(), sides, strict=False)
    ]


def pooled_frames(modality: str, lengths: list[int], arguments: dict[str, Any], config: Any) -> list[Piece]:
    """Lay out Kimi K2.5: all frames of a clip are averaged, so that its tokens lie on the grid of one."""
    rows, columns = config.vision_config.merge_kernel_size
    grids = arguments[f"{modality}_grid_thw"].tolist()
    return [plain(n, modality, (1, h // rows, w // columns)) for n, (_, h, w) in zip(lengths, grids, strict=True)]


def downsampled(modality: str, lengths: list[int], arguments: dict[str, Any], config: Any) -> list[Piece]:
    """Lay out MiniCPM-V: patches per side come with the call; how many of them are joined is the caller's choice.

    Every slice of an image, and every frame of a video, is an item.
    """
    sizes = arguments["target_sizes" if modality == "image" else "target_sizes_videos"].tolist()
    sides = [math.isqrt(h * w // n) for n, (h, w) in zip(lengths, sizes, strict=True)]
    kind = "tile" if modality == "image" else modality
    return [plain(n, kind, (1, h // m, w // m)) for n, m, (h, w) in zip(lengths, sides, sizes, strict=True)]


def any_resolution(modality: str, lengths: list[int], arguments: dict[str, Any], config: Any) -> list[Piece]:
    """Lay out LLaVA-NeXT and -OneVision: a square overview, then the unpadded image, a newline after each row."""
    side = config.vision_config.image_size // config.vision_config.patch_size
    if modality == "video":
        return [video_with_newline(n, arguments) for n in lengths]
    sizes = arguments.get("image_sizes")
    pieces: list[Piece] = []
    for i, n in enumerate(lengths):
        rest = n - side * side
        if rest <= 1:  # a single tile, with or without one closing newline
            pieces.append(
                with_newlines(n, (1, side, side), newlines=rest) if rest >= 0 else plain(n, "image", square_grid(n))
            )
            continue
        shape = detail_shape(rest, sizes[i].tolist() if sizes is not None and i < len(sizes) else (1, 1))
        pieces.append(plain(side * side, "image", (1, side, side)))
        pieces.append(with_newlines(rest, (1, *shape), newlines=shape[0]) if shape else plain(rest, "tile", None))
    return pieces


def detail_shape(n: int, size: tuple[int, int] | list[int]) -> tuple[int, int] | None:
    """Return (h, w) with h * (w + 1) == n whose aspect is nearest to the image's (height, width)."""
    shapes = [(h, n // h - 1) for h in range(1, n) if n % h == 0 and n // h > 1]
    wanted = math.log(size[0] / size[1])
    return min(shapes, key=lambda s: abs(math.log(s[0] / s[1]) - wanted), default=None)


def with_newlines(n: int, grid: Grid, newlines: int) -> Piece:
    """Lay out in raster order with structural tokens: after every row (newlines == h), at the end (1), or none (0)."""
    _, h, w = grid
    coords = torch.full((n, 3), -1)
    if newlines == h:
        coords.view(h, w + 1, 3)[:, :w] = cells((1, h, w)).view(h, w, 3)
    else:
        coords[: h * w] = cells((1, h, w))
    return Piece(n, "tile" if newlines == h else "image", grid, coords)


def video_with_newline(n: int, arguments: dict[str, Any]) -> Piece:
    """Lay out LLaVA-OneVision video: square pooled frames, one newline at the end; older releases append it later."""
    frames = frames_of(arguments)
    side = math.isqrt(n // frames)
    if not side or n - frames * side * side not in (0, 1):
        return plain(n, "video", None)
    grid = (frames, side, side)
    coords = torch.cat([cells(grid), torch.full((1, 3), -1)])
    return Piece(len(coords), "video", grid, coords)


def frames_of(arguments: dict[str, Any]) -> int:
    """Return how many frames each video has that a feature function is handed."""
    pixels = arguments.get("pixel_values_videos", arguments.get("pixel_values"))
    return pixels.shape[1] if pixels is not None and pixels.ndim == 5 else 1


def next_video(modality: str, lengths: list[int], arguments: dict[str, Any], config: Any) -> list[Piece]:
    """Lay out for LLaVA-NeXT-Video: images as LLaVA-NeXT; square pooled frames without newlines."""
    if modality == "image":
        return any_resolution(modality, lengths, arguments, config)
    frames = frames_of(arguments)
    sides = [math.isqrt(n // frames) for n in lengths]
    return [plain(n, modality, (frames, side, side)) for n, side in zip(lengths, sides, strict=True)]


def frames_with_cls(modality: str, lengths: list[int], arguments: dict[str, Any], config: Any) -> list[Piece]:
    """Lay out for Video-LLaVA: square images; frames of a video come one by one, the tower's CLS token first."""
    if modality == "image":
        return square(modality, lengths, arguments, config)
    frames, n = frames_of(arguments), lengths[0]
    side = math.isqrt(max(n - 1, 0))
    grid = (frames, side, side)
    if len(lengths) % frames or n != side * side + 1:
        return [plain(n, modality, None) for n in lengths]
    coords = torch.full((frames, n, 3), -1)
    coords[:, 1:] = cells(grid).view(frames, n - 1, 3)
    return [Piece(frames * n, modality, grid, coords.view(-1, 3))] * (len(lengths) // frames)


def queries(modality: str, lengths: list[int], arguments: dict[str, Any], config: Any) -> list[Piece]:
    """Lay out for Aria: tokens answer learned queries and lie on no grid."""
    return [plain(n, modality, None) for n in lengths]


def queries_of_sample(modality: str, lengths: list[int], arguments: dict[str, Any], config: Any) -> list[Piece]:
    """Lay out Idefics2: items are samples; every image of one answers as many queries."""
    n = config.perceiver_config.resampler_n_latents
    return [plain(n, modality, None) for length in lengths for _ in range(length // n)]


def low_and_high(modality: str, lengths: list[int], arguments: dict[str, Any], config: Any) -> list[Piece]:
    """Lay out Molmo2: an overview, then the crops as one grid; videos have frames of one size."""
    if modality == "video":
        return [plain(n, modality, tuple(g)) for n, g in zip(lengths, arguments["video_grids"].tolist(), strict=True)]
    pieces = []
    for low_h, low_w, high_h, high_w in arguments["image_grids"].tolist():
        pieces.append(plain(low_h * low_w, "image", (1, low_h, low_w)))
        pieces += [plain(high_h * high_w, "tile", (1, high_h, high_w))] if high_h * high_w else []
    return pieces


def square_tiles(modality: str, lengths: list[int], arguments: dict[str, Any], config: Any) -> list[Piece]:
    """Lay out InternVL: items are square tiles; an image is one or several of them."""
    return [plain(n, "tile", square_grid(n)) for n in lengths]


def tiles_of_sample(modality: str, lengths: list[int], arguments: dict[str, Any], config: Any) -> list[Piece]:
    """Lay out Idefics3 and SmolVLM: items are samples (newer releases) or tiles (older ones), equally long."""
    vision = config.vision_config
    per_tile = (vision.image_size // vision.patch_size) ** 2 // config.scale_factor**2
    pieces: list[Piece] = []
    for n in lengths:
        count, rest = divmod(n, per_tile)
        pieces += [plain(n, "image", None)] if rest else [plain(per_tile, "tile", square_grid(per_tile))] * count
    return pieces


def sized(modality: str, lengths: list[int], arguments: dict[str, Any], config: Any) -> list[Piece]:
    """Lay out Mistral3: the grid follows from the image's size in pixels."""
    cell = config.vision_config.patch_size * getattr(config, "spatial_merge_size", 1)
    sizes = arguments.get("image_sizes")
    if sizes is None or len(sizes) != len(lengths):
        return [plain(n, modality, None) for n in lengths]
    sizes = sizes.tolist() if hasattr(sizes, "tolist") else sizes
    return [plain(n, modality, (1, h // cell, w // cell)) for n, (h, w) in zip(lengths, sizes, strict=False)]


def unfolded(modality: str, lengths: list[int], arguments: dict[str, Any], config: Any) -> list[Piece]:
    """Lay out LFM2-VL: patches per side come with the call and are joined by `downsample_factor`."""
    shapes = arguments.get("spatial_shapes")
    if shapes is None or len(shapes) != len(lengths):
        return [plain(n, modality, square_grid(n)) for n in lengths]
    f = config.downsample_factor
    return [plain(n, "tile", (1, h // f, w // f)) for n, (h, w) in zip(lengths, shapes.tolist(), strict=False)]

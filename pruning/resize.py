"""The control that prunes the image itself: a smaller image with the same number of tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from vlmopt.core.settings import setting

from .base import Selector, register
from .budget import kept_tokens, strided
from .tokens import Selection, VisualTokens


@register("resize")
@dataclass(frozen=True, kw_only=True)
class Resize(Selector):
    """Let the vision tower encode a smaller image, whose features sit at evenly spread cells of the full grid.

    Are We Using the Right Benchmark (VTC-Bench, arXiv 2510.07143) finds that plain down-sampling beats many published
    methods. Every image keeps its share of the ratio; the grid that comes closest may hold slightly fewer tokens.
    """

    reads = "pixels"
    resizes_pixels = True
    adaptive = True  # the nearest grid may hold slightly fewer tokens

    layer: int = setting(0, "Always 0: the image shrinks before the vision tower.", "int", min=0, max=0)
    positions: str = setting(
        "keep",
        "keep: cells of the full grid with gaps; repack: renumbered, 1-D RoPE only.",
        "str",
        choices=("keep", "repack"),  # no pospad: the cells between were never encoded, a marker would say nothing
    )
    padding: str = setting("keep", "Always keep: what the tower made stays.", "str", choices=("keep",))
    allocation: str = setting("global", "Always global: images shrink alike.", "str", choices=("global",))
    segment: str = setting("image", "Always image.", "str", choices=("image",))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.keep_tokens is not None:
            raise ValueError(
                f"{self.label}: keep_tokens={self.keep_tokens} cannot be used: images shrink one by one, each by the "
                "same ratio; give keep_ratio"
            )

    def grid(self, t: int, h: int, w: int) -> tuple[int, int]:
        """Return the smaller (h, w) of a span of t * h * w merged cells; frames stay."""
        return target_grid(h, w, max(kept_tokens(t * h * w, self.keep_ratio, None) // t, 1))

    def pick(self, tokens: VisualTokens, k: int) -> Selection:
        raise NotImplementedError("the grids decide which cells stay")

    def select(self, tokens: VisualTokens) -> Selection:
        """Return the cells whose features the tower really made; how many follows from the grids.

        A held cell takes the place of the cell that stands for its block, whose features it then shows. If several
        cells of a block are held, all of them stay.
        """
        coords, held = tokens.coords, tokens.held
        keep = torch.zeros(len(tokens), dtype=torch.bool, device=tokens.item.device)
        for item in tokens.item.unique().tolist():
            mine, grid = tokens.item == item, tokens.grids[item]
            if grid is None or not bool((coords[mine] >= 0).all()):
                raise ValueError(f"{self.label}: image {item} has no known patch grid, so it cannot be resized")
            _, h, w = grid
            cells = grid_cells(h, w, *self.grid(*grid)).to(coords.device)
            cell, frame = coords[:, 1] * w + coords[:, 2], coords[:, 0] * h * w
            keep |= mine & torch.isin(cell, cells)
            if held is not None:
                own = mine & held
                block = block_of(h, w, *self.grid(*grid)).to(coords.device)[cell[own]]
                keep &= ~(mine & torch.isin(frame + cell, frame[own] + cells[block])) | own
        index = (keep if held is None else keep | held).nonzero()[:, 0]
        requested = min(self.budget(tokens.total), len(tokens))
        return Selection(index, stats={"requested": requested, "actual": len(index)})


def target_grid(h: int, w: int, budget: int) -> tuple[int, int]:
    """Return the (h2, w2) within (h, w) and h2 * w2 <= budget that uses most of the budget and distorts least.

    Cost: 2 ln(budget / (h2 w2)) + |ln((h2 / h) / (w2 / w))|; in a tie the higher grid.

    Raises:
        ValueError: a number below 1.
    """
    if min(h, w, budget) < 1:
        raise ValueError(f"grid and budget must be >= 1, got h={h}, w={w}, budget={budget}")
    if budget >= h * w:
        return h, w

    def cost(grid: tuple[int, int]) -> float:
        h2, w2 = grid
        return round(2 * math.log(budget / (h2 * w2)) + abs(math.log(h2 * w / (h * w2))), 12)

    # A narrower grid of the same height always costs more: it loses twice what the shape can win.
    return min(((h2, min(w, budget // h2)) for h2 in range(min(h, budget), 0, -1)), key=cost)


def grid_cells(h: int, w: int, h2: int, w2: int) -> Tensor:
    """Return Long[h2 * w2]: cells of a grid h * w nearest to the centres of h2 * w2 coarse cells; flat, ascending.

    Raises:
        ValueError: the coarse grid is empty or exceeds the fine one.
    """
    if not (1 <= h2 <= h and 1 <= w2 <= w):
        raise ValueError(f"a coarse grid of {h2} x {w2} does not fit into {h} x {w}")
    rows, columns = torch.tensor(strided(h, h2)), torch.tensor(strided(w, w2))
    return (rows[:, None] * w + columns).flatten()


def block_of(h: int, w: int, h2: int, w2: int) -> Tensor:
    """Return Long[h * w]: the coarse cell, of h2 * w2, in which each cell of a grid lies."""
    rows, columns = ((2 * torch.arange(n) + 1) * k // (2 * n) for n, k in ((h, h2), (w, w2)))
    return (rows[:, None] * w2 + columns).flatten()


def resize_patches(
    pixel_values: Tensor,
    grid_thw: Tensor | Sequence[Sequence[int]],
    new_grids: Tensor | Sequence[Sequence[int]],
    patch_size: int,
    merge_size: int,
    temporal_patch_size: int,
    channels: int = 3,
) -> Tensor:
    """Resize images that are already cut into patches: antialiased bicubic, clamped to each channel's extremes.

    Args:
        pixel_values: [P, C*T*p*p], all images one after the other, patches in the order (t, h/m, w/m, m, m) and each
            laid out as (C, T, p, p); the layout of the Qwen2-VL image processor.
        grid_thw: Long[k, 3] patches per image (t, h, w). new_grids: Long[k, 3], same t.
        patch_size, merge_size, temporal_patch_size: p, m, T.

    Returns:
        [P2, C*T*p*p] in the dtype of `pixel_values`, computed in fp32; an image that keeps its grid keeps its bits.

    Raises:
        ValueError: grids that do not fit the pixels, the merge size or each other.
    """
    old, new = torch.as_tensor(grid_thw).tolist(), torch.as_tensor(new_grids).tolist()
    sizes, width = [t * h * w for t, h, w in old], channels * temporal_patch_size * patch_size**2
    if pixel_values.shape != (sum(sizes), width):
        raise ValueError(
            f"pixel_values {tuple(pixel_values.shape)} do not fit grid_thw={old}: {sum(sizes)} patches x {width} values"
        )
    if len(old) != len(new) or any(a[0] != b[0] for a, b in zip(old, new, strict=False)):
        raise ValueError(f"new_grids={new} must hold as many images and frames as grid_thw={old}")
    if bad := [g for g in old + new if min(g) < 1 or g[1] % merge_size or g[2] % merge_size]:
        raise ValueError(f"grids {bad} must be positive multiples of merge_size={merge_size} in height and width")
    layout = (patch_size, merge_size, temporal_patch_size, channels)
    images = zip(pixel_values.split(sizes), old, new, strict=True)
    return torch.cat([x if a == b else resize_one(x, a, b, layout) for x, a, b in images])


Layout = tuple[int, int, int, int]  # patch size, merge size, temporal patch size, channels


def resize_one(x: Tensor, old: Sequence[int], new: Sequence[int], layout: Layout) -> Tensor:
    """Resize one image, as `resize_patches` does."""
    frames = from_patches(x.float(), old, layout)
    size = (new[1] * layout[0], new[2] * layout[0])
    small = interpolate(frames, size=size, mode="bicubic", antialias=True, align_corners=False)
    small = small.clamp(frames.amin((2, 3), keepdim=True), frames.amax((2, 3), keepdim=True))
    return to_patches(small, new, layout).to(x.dtype)


def from_patches(x: Tensor, grid: Sequence[int], layout: Layout) -> Tensor:
    """Turn patches [t*h*w, C*T*p*p] of one image into frames [t*T, C, h*p, w*p]."""
    (t, h, w), (p, m, frames, channels) = grid, layout
    x = x.reshape(t, h // m, w // m, m, m, channels, frames, p, p)
    return x.permute(0, 6, 5, 1, 3, 7, 2, 4, 8).reshape(t * frames, channels, h * p, w * p)


def to_patches(x: Tensor, grid: Sequence[int], layout: Layout) -> Tensor:
    """Invert `from_patches`."""
    (t, h, w), (p, m, frames, channels) = grid, layout
    x = x.reshape(t, frames, channels, h // m, m, p, w // m, m, p)
    return x.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(t * h * w, channels * frames * p * p)

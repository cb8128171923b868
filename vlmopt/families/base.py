"""A family is data: which checkpoints it covers, where its parts live, and how its visual tokens lie on a grid."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Grid = tuple[int, int, int]


@dataclass(frozen=True)
class Piece:
    """A consecutive stretch of encoder output: one image, tile or video of one sample."""

    length: int
    kind: str  # "image" | "tile" | "video"
    grid: Grid | None  # (t, h, w) after merging
    coords: Tensor  # Long[length, 3] (t, y, x); -1 where a token is not a patch (newlines, unknown)


Patches = Callable[[Any, Tensor], Tensor]
"""(outer model, per-patch values [items, patches, c]) -> [..., c] in the order in which the projector takes patches."""

Cells = Callable[[Tensor, Any], Tensor]
"""(pixels as the feature function takes them, model config) -> [tokens, channels, values], tokens in item order."""

Embed = Callable[[Any, dict[str, Any]], Tensor]
"""(decoder, its arguments by name) -> [B, L, d]: what it makes of the ids among them, images put in their places."""

Prompt = Callable[[Any, Tensor], Tensor]
"""(model config, pixels) -> Long[B, L]: ids of a prompt that shows each image and asks nothing."""

Layout = Callable[[str, list[int], dict[str, Any], Any], list[Piece]]
"""(modality, token counts per encoder item, arguments of the feature function, model config) -> pieces."""


def plain(length: int, kind: str, grid: Grid | None) -> Piece:
    """Make a piece whose tokens fill `grid` in raster order, or whose grid is unknown."""
    if grid is None or math.prod(grid) != length:
        return Piece(length, kind, None, torch.full((length, 3), -1))
    return Piece(length, kind, grid, cells(grid))


def cells(grid: Grid) -> Tensor:
    """Return Long[n, 3]: (t, y, x) of every cell of a grid, in raster order."""
    return torch.ones(grid, dtype=torch.bool).nonzero()


def square(modality: str, lengths: list[int], arguments: dict[str, Any], config: Any) -> list[Piece]:
    """Lay each item out as one square image."""
    return [plain(n, modality, square_grid(n)) for n in lengths]


def square_grid(n: int) -> Grid | None:
    side = math.isqrt(n)
    return (1, side, side) if side * side == n else None


def as_they_come(outer: Any, values: Tensor) -> Tensor:
    """Leave patches in the order of the tower."""
    return values


def unknown_cells(pixels: Tensor, config: Any) -> Tensor:
    """Refuse to lay pixels under tokens."""
    raise ValueError(f"which pixels lie under a token is not known for {config.model_type}")


@dataclass(frozen=True)
class Family:
    """Description of one model family. `model_types` are values of `config.model_type`."""

    name: str
    model_types: tuple[str, ...]
    example: str  # a Hub id people load
    vision_tower: str  # attribute paths below the loaded model
    projector: str
    layout: Layout = square
    sizes: Mapping[str, str] = field(default_factory=dict)  # modality -> argument by which the layout knows grids
    by_token: bool = False  # every visual token is a row of the projector's output, made from p patches of its own
    patches: Patches = as_they_come
    encoder: str = ""  # whose forward makes visual tokens, where not every way leads through a feature function
    embed: Embed | None = None  # where the decoder is handed ids, not embeddings
    prompt: Prompt | None = None  # that `generate` makes itself where it is given none
    cells: Cells = unknown_cells  # pixels under every token
    image_std: tuple[float, ...] = ()  # of the example's processor, per channel; () where it is not known
    patch_grid: bool = False  # pixels arrive as patches of any grid: images can be resized inside the model
    frame_times: bool = False  # a time stamp stands in the prompt before every pair of video frames
    click_units: str | None = None  # of coordinates in answers (`choices.UNITS`); None: not known
    described: bool = True

    @property
    def knows_cells(self) -> bool:
        """Whether it can be told which pixels lie under a token."""
        return self.cells is not unknown_cells

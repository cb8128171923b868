"""One image or video as the model is given it: its grid, its tokens, its pixels."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

from vlmopt.families import Family, Piece
from vlmopt.families.layouts import any_resolution, square_tiles
from vlmopt.families.patches import first_copy, tokens_per_side
from vlmopt.pruning import Pixels, PixelScale, Signal, VisualTokens

from .policies import KEY
from .positions import LARGEST

PIXELS = {"image": "pixel_values", "video": "pixel_values_videos"}
GRIDS = {"image": "image_grid_thw", "video": "video_grid_thw"}


@dataclass(frozen=True, eq=False)
class Item:
    """One image or video as the model is given it."""

    family: Family
    config: Any
    modality: str
    total: int  # rows without pruning
    fields: Mapping[str, Any]  # of its own, without a dimension of items

    @property
    def grid(self) -> tuple[int, ...]:
        """(t, h, w) in merged cells; () where the family states none."""
        thw = self.fields.get(GRIDS[self.modality])
        if thw is None:
            return ()
        (t, h, w), merge = thw.tolist(), self.config.vision_config.spatial_merge_size
        return t, h // merge, w // merge

    @property
    def step(self) -> float:
        """Positions from one frame to the next."""
        seconds = self.fields.get("second_per_grid_ts")
        step = 1.0 if seconds is None else float(seconds) * getattr(self.config.vision_config, "tokens_per_second", 1)
        if not 0 <= step <= LARGEST:
            raise ValueError(
                f"{KEY}: frames {step} positions apart cannot be placed; check fps and the clip's own rate"
            )
        return step

    def check(self) -> None:
        """Raise `ValueError` where its pixels do not fit the tower, or make another number of rows than was counted.

        Processor settings of a request can bring that about; in the worker it would end the engine.
        """
        pixels, vision = self.fields.get(PIXELS[self.modality]), self.config.vision_config
        if pixels is None:
            return
        if self.family.patch_grid:
            patches = int(self.fields[GRIDS[self.modality]].prod())
            wanted: tuple[int, ...] = (patches, 3 * vision.temporal_patch_size * vision.patch_size**2)
            rows = patches / vision.spatial_merge_size**2
        else:
            size = vision.image_size
            wanted = (*pixels.shape[:-3], 3, *((size, size) if isinstance(size, int) else size))
            rows = self.rows_of(len(pixels) if pixels.ndim > 3 else 1)
        if tuple(pixels.shape) != wanted or rows != self.total:
            raise ValueError(
                f"{KEY}: the processor made pixels of shape {tuple(pixels.shape)} and {self.total} tokens of the "
                f"{self.modality}, which this model's tower does not; leave patch_size, merge_size, size, fps, "
                "num_frames and the like out of mm_processor_kwargs"
            )

    def rows_of(self, tiles: int) -> int:
        """Count the rows that a tower of square images makes of tiles or frames; 0 where they are too few for it."""
        side = tokens_per_side(self.config)
        if self.family.layout is square_tiles:
            return tiles * side**2
        if self.family.layout is not any_resolution:
            return self.total
        if self.modality == "video":
            return tiles * math.ceil(side / 2) ** 2 + 1
        size, points = self.fields["image_sizes"], self.config.image_grid_pinpoints
        enough = tiles >= image_size_to_num_patches(size, points, self.config.vision_config.image_size)  # others pad
        return self.total if enough else 0

    def pieces(self) -> list[Piece]:
        """Lay out its tiles or the like, each with its grid."""
        tile = tokens_per_side(self.config) ** 2 if self.family.layout is square_tiles else self.total
        batched = {name: value[None] for name, value in self.fields.items() if isinstance(value, Tensor)}
        return self.family.layout(self.modality, [tile] * (self.total // tile), batched, self.config)

    def tokens(self, signals: Mapping[Any, Any], seed: int, device: Any = "cpu") -> VisualTokens:
        """Describe all its tokens, as a selector sees them."""
        pieces = self.pieces()
        lengths = torch.tensor([piece.length for piece in pieces])
        return VisualTokens(
            total=self.total,
            ordinal=torch.arange(self.total, device=device),
            item=torch.arange(len(pieces)).repeat_interleave(lengths).to(device),
            coords=torch.cat([piece.coords for piece in pieces]).to(device),
            grids=tuple(piece.grid for piece in pieces),
            signals=signals,
            seed=seed,
            lengths=tuple(piece.length for piece in pieces),
        )


def anchors(method: Any, item: Item, pixels: Tensor) -> Tensor:
    """Find Long[n], the cell that the tower encodes for each cell (pixel_redundancy)."""
    vision = item.config.vision_config
    copies = 1 if item.modality == "image" else vision.temporal_patch_size  # an image is repeated to fill its patches
    cells = pixels.view(item.total, vision.spatial_merge_size**2, -1, vision.temporal_patch_size, vision.patch_size**2)
    found = method.encode(
        cells[..., :copies, :].flatten(-2).unflatten(0, item.grid), torch.tensor(item.family.image_std)
    )
    anchor: Tensor = found.anchor
    return anchor


def pixels_of(item: Item, normalized: Callable[[Tensor], Tensor]) -> Tensor:
    """Give an item's pixels as a Hugging Face processor would; `ValueError` where embeddings were sent instead."""
    given = item.fields.get(PIXELS[item.modality])
    if given is None:
        raise ValueError(
            f"{KEY}: this policy reads pixels, but embeddings were sent; use one that reads those: div_prune"
        )
    return normalized(given)


def early_signals(
    needs: Collection[Signal], item: Item, normalized: Callable[[Tensor], Tensor]
) -> dict[Signal, Tensor]:
    """Read those needs that grid and pixels meet: pixels under every token [n, c, v], and their scale [c]."""
    scales: dict[Signal, Tensor] = {
        need: torch.tensor(item.family.image_std) for need in needs if isinstance(need, PixelScale)
    }
    wanted = [need for need in needs if isinstance(need, Pixels)]
    pixels = pixels_of(item, normalized) if wanted else torch.empty(0)
    return {**scales, **{need: under_tokens(need, item, pixels) for need in wanted}}


def under_tokens(need: Pixels, item: Item, pixels: Tensor) -> Tensor:
    """Cut an item's pixels into those under every token, [n, c, v]."""
    once = item.family.patch_grid and not need.repeated
    given = first_copy(pixels, item.config) if once else pixels
    return item.family.cells(given if item.family.patch_grid or given.ndim > 3 else given[None], item.config)

"""Pixel redundancy: keep cells that their neighbours predict out of the vision tower."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vlmopt.core.settings import setting

from .base import Selector, register, top
from .budget import kept_tokens
from .signals import Novelty, Signal
from .tokens import Selection, VisualTokens

DISTANCES = ("linf", "mean", "rms")
NEW = 2.0  # novelty of a cell that nothing predicts; distances of values in 0..1 reach 1
LEFT_OUT = -1.0  # novelty of a cell that the tower did not encode


@dataclass(frozen=True, eq=False)
class Encoding:
    """What the tower encodes of one image of n cells, all in raster order."""

    novelty: Tensor  # fp32 [n]: distance from the prediction, 2 for the first cell; -1 where left out
    anchor: Tensor  # Long[n]: the encoded cell each cell stands for, itself where encoded


@register("pixel_redundancy")
@dataclass(frozen=True, kw_only=True)
class PixelRedundancy(Selector):
    """Leave out cells whose pixels equal, or nearly equal, what the edge rule of lossless JPEG predicts for them.

    PixelPrune (arXiv 2604.00886). A flat background costs one cell, a rectangle of one colour a fixed number of cells
    whatever its size. With tolerance 0 the pixels can be rebuilt exactly; with a tolerance no cell differs by more from
    the cell that stands for it. The model does not rebuild them: it sees the survivors alone, so that answers may
    change even at tolerance 0. Photographs have no such cells and pass through untouched. The choice is made before the
    vision tower; at layer 0 another selector may choose among what it encoded.
    """

    reads = "pixels"
    adaptive = True
    before_tower = True

    keep_ratio: float | None = setting(
        None, "Largest fraction of an image that is encoded, least predictable cells first; 1: no ceiling.", "float",
        above=0, max=1,
    )  # fmt: skip
    layer: int = setting(0, "Always 0: cells leave before the vision tower.", "int", min=0, max=0)
    positions: str = setting(
        "keep",
        "keep: original positions with gaps; pospad: one marker per dropped run, from the cells it stands for.",
        "str",
        choices=("keep", "pospad"),
    )
    padding: str = setting("keep", "Always keep: flat bars are redundant anyway.", "str", choices=("keep",))
    allocation: str = setting("global", "Always global: what is redundant leaves.", "str", choices=("global",))
    segment: str = setting("image", "Always image.", "str", choices=("image",))
    tolerance: float = setting(
        0.0, "Largest distance, on pixel values in 0..1, at which two cells count as equal.", "float", min=0, max=1
    )
    distance: str = setting(
        "linf", "Largest (linf), mean absolute or root mean square difference of a cell's values.", "str",
        choices=DISTANCES,
    )  # fmt: skip

    def __post_init__(self) -> None:
        if self.keep_ratio is None and self.keep_tokens is None:
            object.__setattr__(self, "keep_ratio", 1.0)
        super().__post_init__()
        if self.keep_tokens is not None:
            raise ValueError(
                f"{self.label}: keep_tokens={self.keep_tokens} cannot be used: images are cut one by one, before the "
                "prompt is read; give keep_ratio, or add a selector at layer 0 with keep_tokens"
            )

    @property
    def is_identity(self) -> bool:
        return False  # pixels alone know

    @property
    def needs(self) -> frozenset[Signal]:
        return frozenset({Novelty()})

    def encode(self, cells: Tensor, std: Tensor) -> Encoding:
        """Return which cells of one image the tower shall see.

        Args:
            cells: [t, h, w, g, c, v], the v values per channel of the g patches of each cell, normalised.
            std: fp32 [c], what the values were divided by.
        """
        novelty, predictor = predict(cells, std, self.tolerance, self.distance)
        novelty = novelty.nan_to_num(NEW, NEW).clamp_max(NEW)
        keep = novelty > self.tolerance
        if self.keep_ratio is not None and self.keep_ratio < 1:
            best = top(novelty, kept_tokens(len(novelty), self.keep_ratio, None))
            keep &= torch.zeros_like(keep).index_fill_(0, best, True)
        return Encoding(novelty.masked_fill(~keep, LEFT_OUT), anchors(keep, predictor))

    def pick(self, tokens: VisualTokens, k: int) -> Selection:
        """Return the cells that the tower encoded, of all images of the sample."""
        novelty = tokens.signals[Novelty()]
        encoded = int((novelty >= 0).sum())
        return Selection(top(novelty, max(min(encoded, k), 1)), novelty, {"encoded": encoded})


def predict(cells: Tensor, std: Tensor, tolerance: float, distance: str) -> tuple[Tensor, Tensor]:
    """Return how far each cell is from the neighbour that predicts it, and which neighbour that is.

    With A the cell to the left, B above and C above A: A predicts where C resembles B but not A, B where C resembles
    A but not B, else A (the edge rule of LOCO-I); in the first row A, in the first column B, the first cell nothing.
    In a frame after the first, the same cell one frame earlier predicts instead where it is at least as near.

    Args:
        cells: [t, h, w, g, c, v]. std: fp32 [c]. tolerance: distance at which cells resemble each other.

    Returns:
        fp32 [t*h*w], inf for the first cell, and Long[t*h*w], itself for the first cell.
    """
    t, h, w = cells.shape[:3]
    if tolerance > 0:
        return predict_in_waves(cells.flatten(0, 2), (t, h, w), std, tolerance, distance)
    # Equality is transitive: neighbours can be compared as they are, all at once.
    nothing = torch.full((t, h, w), torch.inf, device=cells.device, dtype=torch.float32)
    left, above, before = nothing, nothing.clone(), nothing.clone()
    left[:, :, 1:] = gaps(cells[:, :, 1:], cells[:, :, :-1], std, distance)
    above[:, 1:] = gaps(cells[:, 1:], cells[:, :-1], std, distance)
    before[1:] = gaps(cells[1:], cells[:-1], std, distance)
    from_above = torch.zeros_like(left, dtype=torch.bool)
    from_above[:, 1:, 0] = True
    from_above[:, 1:, 1:] = (above[:, 1:, :-1] <= 0) & ~(left[:, :-1, 1:] <= 0)
    novelty, step = torch.where(from_above, above, left), torch.where(from_above, w, 1)
    step[:, 0, 0] = 0
    earlier = (before < torch.inf) & (before <= novelty)
    novelty, step = torch.where(earlier, before, novelty), torch.where(earlier, h * w, step)
    return novelty.flatten(), torch.arange(t * h * w, device=cells.device) - step.flatten()


def predict_in_waves(
    cells: Tensor, grid: tuple[int, int, int], std: Tensor, tolerance: float, distance: str
) -> tuple[Tensor, Tensor]:
    """Do as `predict` for a tolerance: compare neighbours as a reader of the kept cells alone would see them.

    Each neighbour shows the value of its anchor, the last kept cell it was predicted from; otherwise small differences
    would add up along a gradient. Cells with equal t + y + x depend on no other, so they go together.

    Args:
        cells: [t*h*w, g, c, v].
    """
    (t, h, w), n, device = grid, len(cells), cells.device
    at = torch.cartesian_prod(*(torch.arange(size) for size in grid)).view(n, 3)
    order, sizes = at.sum(1).argsort(stable=True).to(device), at.sum(1).bincount().tolist()
    at = at.to(device)
    anchor, predictor = torch.arange(n, device=device), torch.arange(n, device=device)
    novelty = torch.full((n,), torch.inf, device=device, dtype=torch.float32)

    def seen(i: Tensor, j: Tensor) -> Tensor:
        return gaps(cells[i], cells[j], std, distance)

    for wave in order.split(sizes):  # t + h + w turns
        frame, y, x = at[wave].T
        left, above, corner = (anchor[(wave - step).clamp_min(0)] for step in (1, w, w + 1))
        edge = (seen(corner, left) <= tolerance) & ~(seen(corner, above) <= tolerance)
        from_above = (y > 0) & ((x == 0) | edge)
        guess = wave - torch.where(from_above, w, 1).masked_fill((y == 0) & (x == 0), 0)
        gap = seen(wave, anchor[guess]).masked_fill((y == 0) & (x == 0), torch.inf)
        if t > 1:
            same = (wave - h * w).clamp_min(0)
            earlier = seen(wave, anchor[same])
            nearer = (frame > 0) & (earlier <= gap)
            guess, gap = torch.where(nearer, same, guess), torch.where(nearer, earlier, gap)
        predictor[wave], novelty[wave] = guess, gap
        anchor[wave] = torch.where(gap <= tolerance, anchor[guess], wave)
    return novelty, predictor


def gaps(a: Tensor, b: Tensor, std: Tensor, distance: str) -> Tensor:
    """Return fp32 [...]: the distance of cells [..., g, c, v] on values before normalisation."""
    apart = (a.float() - b.float()).abs()
    if distance == "linf":
        return (apart.amax(-1) * std).amax((-2, -1))
    if distance == "mean":
        return (apart.mean(-1) * std).mean((-2, -1))
    return (apart.square().mean(-1) * std.square()).mean((-2, -1)).sqrt()


def anchors(keep: Tensor, predictor: Tensor) -> Tensor:
    """Return Long[n]: the first kept cell on each cell's way through its predictors; the first cell is always kept."""
    here = torch.arange(len(keep), device=keep.device)
    anchor = torch.where(keep, here, predictor)
    for _ in range(len(keep).bit_length()):  # every turn doubles the way
        anchor = anchor[anchor]
    return anchor

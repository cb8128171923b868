"""Show what every head of a layer would read of a prompt under a sparse pattern: drawings, density, recall."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image
from torch import nn

from ..kernels.draw_head import draw_head
from ..kernels.metrics import density, recall, recall_summary, sample_rows
from ..kernels.patterns import Pattern, Prefill
from ..kernels.sheet import origin
from ..prefill import SparsePrefill
from ..search import watch
from ..search.capture import Shown

FINEST = 2  # parts of a block's side that are drawn; counting finer ones takes seconds per head


@dataclass(frozen=True)
class HeadMap:
    """One query head. `blocks` and `cells` are shares of the causal ones, `recall` the mean share of the attention."""

    layer: int
    head: int
    pattern: str
    blocks: float
    cells: float
    recall: float
    panels: tuple[Image.Image, ...]  # of `draw_head`: natural order; then the order of computing, where there is one


@torch.inference_mode()
def head_maps(
    model: nn.Module,
    inputs: Mapping[str, Any],
    prefill: SparsePrefill | Pattern,
    layer: int,
    *,
    block: int | None = None,
    size: int = 480,
    progress: Callable[[float, str], None] | None = None,
) -> list[HeadMap]:
    """Run a prompt through the model as it is and lay the pattern over one layer.

    Args:
        model: a loaded vision-language model. inputs: what `model(**inputs)` takes, one sample.
        prefill: a pattern for all heads, or `SparsePrefill`, of which the patterns count, not where it stays dense.
        block: rows and keys of the blocks in place of the pattern's own; small ones show more of a short prompt.
        size: pixels a map's side has.
        progress: told (share done, what was done) after every head; what it raises ends the work.

    Raises:
        ValueError: no such layer, or one whose attention cannot be shown, with the reason.
    """
    shown: list[Shown] = []

    def show(found: Shown) -> None:
        if found.layer == layer:
            shown.append(found)

    reasons = watch(model, inputs, show, layer)
    if not shown:
        raise ValueError(f"the attention of layer {layer} cannot be shown: {'; '.join(reasons)}")
    seen = shown[0].prefill
    method = prefill if isinstance(prefill, SparsePrefill) else SparsePrefill(pattern=prefill)
    groups = replace(method, dense_layers=0).groups(layer, seen.q.shape[1])
    if not groups:
        raise ValueError(f"layer {layer} stays dense in these head patterns; choose another layer")
    out: list[HeadMap] = []
    for pattern, heads in groups:
        sized = pattern if block is None else replace(pattern, tile=block, run=block)
        for found in drawn(replace(seen, heads=heads.to(seen.device)), sized, layer, size):
            out.append(found)
            if progress is not None:
                progress(len(out) / seen.q.shape[1], f"head {found.head} drawn")
    return sorted(out, key=lambda found: found.head)


def drawn(prefill: Prefill, pattern: Pattern, layer: int, size: int) -> Iterator[HeadMap]:
    """Yield the heads of `prefill.heads`, all under one pattern."""
    plan = pattern.build(prefill)
    share = density(prefill, plan, pattern.tile, pattern.run)
    kept = recall_summary(recall(prefill, plan, sample_rows(prefill)))["mean"]
    sizes: dict[str, Any] = {"tile": pattern.tile, "run": pattern.run, "size": size}
    detail = min(detail_of(pattern, prefill, size), FINEST)
    for place, head in enumerate(prefill.heads.tolist()):
        one = replace(prefill, heads=prefill.heads[place : place + 1])
        title = f"layer {layer}, head {head}: {pattern.name}"
        sheet = draw_head(one, pattern.build(one), head, title=title, detail=detail, **sizes)
        numbers = float(share.blocks[place]), float(share.cells[place]), float(kept[place])
        yield HeadMap(layer, head, pattern.name, *numbers, split(sheet, size))


def split(image: Image.Image, size: int) -> tuple[Image.Image, ...]:
    """Split a sheet into its panels, one image each."""
    wide = origin(1, size)[0] - origin(0, size)[0]
    return tuple(image.crop((x, 0, x + wide, image.height)) for x in range(0, image.width, wide))


def detail_of(pattern: Pattern, prefill: Prefill, size: int) -> int:
    """Return how many parts of a block's side, at most 8, are two pixels wide on a map of `size` pixels."""
    block = min(pattern.tile, pattern.run)
    return next((parts for parts in (8, 4, 2) if 2 * prefill.width * parts <= size * block), 1)

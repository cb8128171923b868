"""The tower on some of its cells (pixel_redundancy): positions are those of the whole image, windows lose cells.

The tower's own metadata of the whole images is cut to the cells that are there. Behind the tower, rows go back to the
places of their cells, and a cell that was left out shows the features of the one that it stands for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

PER_PATCH = ("rotary_pos_emb_cos", "rotary_pos_emb_sin", "pos_embeds")
BOUNDS = {"cu_seqlens": ("max_seqlen", "max_seqlen_full"), "cu_window_seqlens": ("max_seqlen_window",)}


@contextmanager
def on_cells(tower: nn.Module, anchors: Sequence[Tensor]) -> Iterator[None]:
    """Let the tower, which is given the pixels of encoded cells alone, act as if it had seen all.

    Args:
        anchors: Long[n] per item, the encoded cell that each cell stands for.
    """
    here = [torch.arange(len(anchor)) for anchor in anchors]
    there = torch.cat([anchor.cpu() == own for anchor, own in zip(anchors, here, strict=True)])
    starts = torch.tensor([0, *(len(anchor) for anchor in anchors[:-1])]).cumsum(0).tolist()
    anchor = torch.cat([anchor.cpu() + start for anchor, start in zip(anchors, starts, strict=True)])
    source = (there.cumsum(0) - 1)[anchor]  # among the rows that the tower gives

    def before(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        pixels, grid = args[0], kwargs.get("grid_thw", args[1] if len(args) > 1 else None)
        grid = grid.tolist() if isinstance(grid, Tensor) else grid
        metadata = cut(module.prepare_encoder_metadata(grid), there, module.spatial_merge_size**2)
        return (pixels, grid), {"encoder_metadata": metadata}

    def behind(module: Any, args: Any, rows: Tensor) -> Tensor:
        return rows[source.to(rows.device)]

    hooks = [tower.register_forward_pre_hook(before, with_kwargs=True), tower.register_forward_hook(behind)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def cut(metadata: Mapping[str, Any], there: Tensor, unit: int) -> dict[str, Any]:
    """Cut a tower's metadata to the cells that are there.

    Args:
        metadata: of all cells. there: Bool[n] in raster order. unit: patches per cell.
    """
    out = dict(metadata)
    order = metadata.get("window_index")  # Long[n]: the cell at each place in the tower's order; None: raster order
    placed = there if order is None else there.to(order.device)[order]
    for name in PER_PATCH:
        if (table := metadata.get(name)) is not None:
            kept = there if name == "pos_embeds" else placed
            out[name] = table.reshape(len(there), unit, *table.shape[1:])[kept.to(table.device)].flatten(0, 1)
    ends = torch.cat([placed.new_zeros(1, dtype=torch.long), placed.cumsum(0) * unit])
    for name, longest in BOUNDS.items():
        if (bounds := metadata.get(name)) is not None:
            out[name] = ends.to(bounds.device)[bounds.long() // unit].unique_consecutive().to(bounds.dtype)
            for key in longest:
                if key in metadata:
                    out[key] = out[name].diff().max().cpu()
    if order is not None:
        ranks = there.cumsum(0).to(order.device) - 1
        out["window_index"] = ranks[order[placed]]
        out["reverse_indices"] = out["window_index"].argsort()
    return out

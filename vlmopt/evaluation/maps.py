"""Kept-token maps on disk, so that a report can draw them without the model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..reporting import VisualMap

FLAGS = ("coords", "kept", "markers", "merged", "merged_into")
SIDE = 768  # pixels a saved image has at most


def save_maps(path: Path, maps: Sequence[VisualMap]) -> None:
    """Write the maps of one sample: arrays kind_0, grid_0, coords_0, kept_0, ..., scores_0, one number per image."""
    arrays: dict[str, np.ndarray] = {}
    for number, m in enumerate(maps):
        arrays[f"kind_{number}"] = np.array(m.kind)
        arrays[f"grid_{number}"] = np.array(m.grid or (), dtype=np.int64)
        arrays |= {f"{name}_{number}": getattr(m, name).numpy() for name in FLAGS}
        if m.scores is not None:
            arrays[f"scores_{number}"] = m.scores.numpy().astype(np.float32)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]


def load_maps(path: Path) -> list[VisualMap]:
    """Return what `save_maps` wrote, as `vlmopt.overlay.overlay` takes it; the images are numbered anew."""
    with np.load(path) as held:
        arrays = dict(held)
    maps = []
    for number in range(sum(name.startswith("kind_") for name in arrays)):
        grid = tuple(int(side) for side in arrays[f"grid_{number}"])
        scores = arrays.get(f"scores_{number}")
        maps.append(
            VisualMap(
                item=number,
                kind=str(arrays[f"kind_{number}"]),
                grid=(grid[0], grid[1], grid[2]) if grid else None,
                scores=None if scores is None else torch.from_numpy(scores),
                **{name: torch.from_numpy(arrays[f"{name}_{number}"]) for name in FLAGS},
            )
        )
    return maps


def save_image(path: Path, image: Image.Image) -> None:
    """Save a copy of an image for a report, at most `SIDE` pixels a side.

    The ending of the name says how it is packed.
    """
    small = image.copy()
    small.thumbnail((SIDE, SIDE))
    path.parent.mkdir(parents=True, exist_ok=True)
    small.save(path, quality=85)

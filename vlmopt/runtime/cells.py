"""Signals that come with the pixels: one value per cell of a picture, laid on the tokens that show the cells."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vlmopt.pruning.signals import Novelty, Pixels, PixelScale

from ..families.patches import first_copy
from .place import Place
from .tower import Found


class GivenPixels(dict[str, list[Tensor]]):
    """State of the features of a call: what its feature functions were given, per modality, in order."""


def pixels(need: Pixels, at: Place) -> Tensor:
    """Pixels under every token of the sample's spans."""
    family, config, store = at.session.family, at.session.model.config, at.step.call.features.slot(GivenPixels)
    of_family = family.cells
    assert of_family is not None

    def read_cells(given: Tensor) -> Tensor:
        once = family.patch_grid and not need.repeated
        return of_family(first_copy(given, config) if once else given, config).float()

    def cells() -> dict[str, Tensor]:
        return {modality: torch.cat([read_cells(p) for p in given]) for modality, given in store.items()}

    return of_cells(at, f"pixels, repeated={need.repeated}", cells)


def pixel_scale(need: PixelScale, at: Place) -> Tensor:
    return torch.tensor(at.session.family.image_std, device=at.hidden.device)


def novelty(need: Novelty, at: Place) -> Tensor:
    """What was found before the tower ran."""
    store = at.step.call.features.slot(Found)
    return of_cells(at, "novelty", lambda: {modality: torch.cat(found) for modality, found in store.items()})


def of_cells(at: Place, name: str, cells: Callable[[], dict[str, Tensor]]) -> Tensor:
    """Values [cells, ...] per modality, in the order in which pictures came, for the current tokens; NaN elsewhere."""
    context = at.step.context
    assert context is not None

    def spread() -> Tensor:
        values = cells()
        one = next(iter(values.values()))
        full = one.new_full((context.visual.shape[0], at.step.q, *one.shape[1:]), float("nan"))
        done = dict.fromkeys(values, 0)
        for first in range(0, context.visual.shape[0], context.expand):
            for span in (s for s in context.spans if s.row == first):
                modality = "video" if span.kind == "video" else "image"
                patches = span.index[(span.coords >= 0).all(1).to(span.index.device)]
                start, done[modality] = done[modality], done[modality] + len(patches)
                for row in range(first, first + context.expand):
                    full[row, patches] = values[modality][start : start + len(patches)]
        return full

    full = at.step.remember((name,), None, spread)
    return full[at.row, at.logical.to(full.device)]

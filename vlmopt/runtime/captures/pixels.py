"""Capture signals that come with the pixels: one value per cell of an image, laid on the tokens that show the cells."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vlmopt.pruning import Selector
from vlmopt.pruning.signals import Novelty, Pixels, PixelScale

from ...families import family_of
from ...families.patches import first_copy
from ..arguments import pixels_in
from ..call import Call, PromptStep
from ..capture import Capture, described
from ..context import VisualContext
from ..place import Place
from ..structure import ModelStructure


class GivenPixels(dict[str, list[Tensor]]):
    """State of the features of a call: what its feature functions were given, per modality, in order."""


class Found(dict[str, list[Tensor]]):
    """State of the features of a call: novelty of every cell, per modality, in the order of the images."""


class PixelsCapture(Capture[Pixels]):
    """Capture `Pixels`."""

    def check(self, model: Any, structure: ModelStructure, method: Selector, need: Pixels) -> None:
        if not family_of(model.config).knows_cells:
            padded = method.padding != "keep"
            what = f"padding={method.padding!r}" if padded else "the method"
            way_out = "padding='keep'" if padded else "a selector that reads embeddings, e.g. div_prune"
            raise ValueError(
                f"{method.name}: {what} needs the pixels under every token, which are not known for "
                f"{model.config.model_type}; works with: {described(lambda f: f.knows_cells)}. Use {way_out}"
            )

    def take(self, call: Call, modality: str, function: Callable[..., Any], bound: dict[str, Any]) -> None:
        call.features.slot(GivenPixels).setdefault(modality, []).append(pixels_in(modality, bound))

    def missing(self, step: PromptStep, context: VisualContext, need: Pixels) -> str | None:
        if step.call.features.slot(GivenPixels):
            return None
        return "no pixels came with this call (features were computed before)"

    def read(self, need: Pixels, at: Place) -> Tensor:
        """Return the pixels under every token of the sample's spans."""
        family, config, store = at.session.family, at.session.model.config, at.step.call.features.slot(GivenPixels)

        def read_cells(given: Tensor) -> Tensor:
            once = family.patch_grid and not need.repeated
            return family.cells(first_copy(given, config) if once else given, config).float()

        def cells() -> dict[str, Tensor]:
            return {modality: torch.cat([read_cells(p) for p in given]) for modality, given in store.items()}

        return of_cells(at, f"pixels, repeated={need.repeated}", cells)


class PixelScaleCapture(Capture[PixelScale]):
    """Capture `PixelScale`."""

    def check(self, model: Any, structure: ModelStructure, method: Selector, need: PixelScale) -> None:
        if not family_of(model.config).image_std:
            raise ValueError(
                f"{method.name}: the image_std of the processor of {model.config.model_type} is not known; works "
                f"with: {described(lambda f: bool(f.image_std))}. Use a selector that reads embeddings, e.g. div_prune"
            )

    def read(self, need: PixelScale, at: Place) -> Tensor:
        return torch.tensor(at.session.family.image_std, device=at.hidden.device, dtype=torch.float32)


class NoveltyCapture(Capture[Novelty]):
    """Capture `Novelty`: what was found before the tower ran."""

    def missing(self, step: PromptStep, context: VisualContext, need: Novelty) -> str | None:
        if step.call.features.slot(Found) and context.grouped:
            return None
        return "the vision tower did not run in this call, or its images cannot be told apart in the prompt"

    def read(self, need: Novelty, at: Place) -> Tensor:
        store = at.step.call.features.slot(Found)
        return of_cells(at, "novelty", lambda: {modality: torch.cat(found) for modality, found in store.items()})


def of_cells(at: Place, name: str, cells: Callable[[], dict[str, Tensor]]) -> Tensor:
    """Lay values [cells, ...] per modality, in the order of the images, on the current tokens; NaN elsewhere."""
    context = at.context

    def spread() -> Tensor:
        values = cells()
        one = next(iter(values.values()))
        full = one.new_full((context.visual.shape[0], at.step.q, *one.shape[1:]), float("nan"))
        done = dict.fromkeys(values, 0)
        for first in range(0, context.visual.shape[0], context.expand):
            for span in (s for s in context.spans if s.batch_row == first):
                modality = "video" if span.kind == "video" else "image"
                patches = span.index[(span.coords >= 0).all(1).to(span.index.device)]
                start, done[modality] = done[modality], done[modality] + len(patches)
                for batch_row in range(first, first + context.expand):
                    full[batch_row, patches] = values[modality][start : start + len(patches)]
        return full

    full = at.step.remember((name,), None, spread)
    return full[at.batch_row, at.logical.to(full.device)]

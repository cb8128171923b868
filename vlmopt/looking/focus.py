"""Find the part of an image that a question is about: a heat map, its best areas as a mask, and a box around them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from vlmopt.core import near, shown

from ..choices import SINKS
from .areas import Box, Heat, Mask, box_of, components, window
from .hearing import Heard, hear
from .looks import LOOKS, Look, Score, why_flat
from .memory import GeneralMaps
from .places import canvas_for, check_places, paint, places, tokens_in

GENERAL = "Write a general description of the image."
CANVAS = 1024  # pixels that the longer side of a heat map has at most
NAMES = " or ".join(LOOKS)


@dataclass(frozen=True, eq=False)
class Focus:
    """Where a question makes a model look.

    `fallback` says why there is nothing to cut out; then the masks are full and the box is the whole image.
    """

    score: Tensor  # fp32 [n] of the visual tokens, higher = look
    heat: Heat  # fp32 [h, w] over the image, its longer side at most `CANVAS`; NaN where the tower does not see it
    tokens: Tensor  # Bool[n]: visual tokens inside the areas
    pixels: Mask  # Bool [height, width] of the image: the areas
    box: Box  # around them, in pixels of the image
    steps: int  # answer tokens whose attention counts
    sinks: int  # visual tokens that were left out as attention sinks
    fallback: str | None
    question: Heard
    general: Heard
    remembered: bool  # whether the general instruction's maps came from memory

    @property
    def share(self) -> float:
        """The fraction of the image's pixels inside the areas."""
        return float(self.pixels.mean())


def focus(
    model: nn.Module,
    processor: Any,
    image: Image.Image,
    question: str,
    *,
    look: str | Score = "contrast",
    general: str = GENERAL,
    layers: str | None = None,
    steps: int | None = None,
    share: float = 0.3,
    most: int = 3,
    sinks: str = "leave_out",
    max_new_tokens: int = 64,
    memory: GeneralMaps | None = None,
) -> Focus:
    """Ask a question and a general instruction about an image, unpruned, and compare what both look at.

    Args:
        model: a loaded vision-language model; it is given back as it came, a policy that is installed included.
        image: RGB.
        look: "contrast" (CARVE, arXiv 2509.06461): the ratio of both attentions in the upper middle layers, summed
            over the answer; "relative" (ViCrop, arXiv 2502.17422): that of one layer for the first answer token, and
            the best window; or a function (question fp32 [T, L, n], general fp32 [T, L, n]) -> fp32 [n].
        layers: whose attention is read, such as "62%:80%"; None: those of the look. steps: answer tokens that count, at
            most; 1 is fast; None: those of the look, 32 for contrast.
        share: of the image's pixels, the highest of which are kept; > 0, <= 1. most: components that stay.
        sinks: leave_out: tokens that `sink_diagnosis` names get no attention; keep: as any other.
        max_new_tokens: of the first answer. memory: holds the general instruction's maps from question to question.

    Raises:
        ValueError, TypeError: a setting out of range, a model whose tokens lie nowhere known, or whose attention cannot
            be read. Nothing has been changed then.
    """
    if not isinstance(image, Image.Image):
        raise TypeError(f"image must be a PIL image, got {type(image).__name__}; `vlmopt.media.load_image` reads files")
    for name, text in (("question", question), ("general", general)):
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"{name} must be a text that is not empty, got {shown(text)}")
    chosen = look_of(look, layers, steps)
    check(share, most, sinks, max_new_tokens)
    if memory is not None and not isinstance(memory, GeneralMaps):
        raise TypeError(f"memory must be a vlmopt.looking.memory.GeneralMaps, got {type(memory).__name__}")
    check_places(model.config)
    wanted = [(question, max_new_tokens), (general, chosen.steps)]
    memory = GeneralMaps(1) if memory is None else memory
    key = memory.key(model, processor, image, general, chosen.layers, chosen.steps)
    known = memory.get(key)
    heard = hear(
        model,
        processor,
        image,
        wanted if known is None else wanted[:1],
        layers=chosen.layers,
        steps=chosen.steps,
        sinks=sinks == "leave_out",
    )
    if known is None:
        memory.put(key, heard[1])
    return focused(image.size, heard[0], known or heard[1], chosen, share, most, (model, processor), known is not None)


def focused(
    size: tuple[int, int],
    question: Heard,
    general: Heard,
    look: Look,
    share: float,
    most: int,
    loaded: tuple[nn.Module, Any],
    remembered: bool = False,
) -> Focus:
    """Turn the maps of both prompts into a mask and a box on an image of `size` (width, height)."""
    steps = min(len(question.attention), len(general.attention))
    asked, usual = (heard.attention[:steps].masked_fill(question.sinks, 0.0) for heard in (question, general))
    score = look.score(asked, usual)
    if not isinstance(score, Tensor) or score.shape != (question.visual_tokens,):
        got = f"shape {tuple(score.shape)}" if isinstance(score, Tensor) else f"a {type(score).__name__}"
        raise ValueError(f"look must return a tensor of {question.visual_tokens} scores, one for each token, got {got}")
    where = places(question.maps, size, *loaded)
    heat = paint(score.float(), question.maps, where, size, canvas_for(size, CANVAS))
    fallback = why_flat(score, look.score(usual, usual))
    small = np.zeros(heat.shape, dtype=bool)
    if fallback is None:
        small = window(heat) if look.area == "window" else components(heat, share, most)
        if bool((small == ~np.isnan(heat)).all()):
            fallback = "nothing is left out: the areas are all that the model sees"
    pixels = enlarged(small, size) if fallback is None else np.ones(size[::-1], dtype=bool)
    return Focus(
        score=score,
        heat=heat,
        tokens=tokens_in(pixels, question.maps, where, size) if fallback is None else torch.ones(len(score)).bool(),
        pixels=pixels,
        box=box_of(pixels) or (0, 0, *size),
        steps=steps,
        sinks=int(question.sinks.sum()),
        fallback=fallback,
        question=question,
        general=general,
        remembered=remembered,
    )


def enlarged(mask: Mask, size: tuple[int, int]) -> Mask:
    """Return a mask in the pixels of an image of `size` (width, height), each the nearest of the smaller mask."""
    if mask.shape == size[::-1]:
        return mask
    return np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))


def look_of(look: str | Score, layers: str | None, steps: int | None) -> Look:
    """Return the look of a name or a function, with layers and steps of one's own."""
    if isinstance(look, str):
        if look not in LOOKS:
            raise ValueError(f"unknown look {shown(look)}{near(look, LOOKS)}; choose {NAMES}, or a function")
        base = LOOKS[look]
    elif callable(look):
        base = Look(look, LOOKS["contrast"].layers, LOOKS["contrast"].steps)
    else:
        raise TypeError(f"look must be {NAMES}, or a function of two maps; got {type(look).__name__}")
    layers, steps = base.layers if layers is None else layers, base.steps if steps is None else steps
    whole("steps", steps)
    return Look(base.score, layers, steps, base.area)


def check(share: float, most: int, sinks: str, max_new_tokens: int) -> None:
    """Raise `ValueError` for settings out of range."""
    if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share <= 1:
        raise ValueError(f"share must be a number > 0 and <= 1, got {shown(share)}")
    whole("most", most)
    whole("max_new_tokens", max_new_tokens)
    if sinks not in SINKS:
        raise ValueError(f"sinks must be {' or '.join(SINKS)}, got {shown(sinks)}")


def whole(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a whole number >= 1, got {shown(value)}")

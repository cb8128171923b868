"""What the outer model is called with, under the names that tested releases use."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

MODALITIES = {"image": "get_image_features", "video": "get_video_features"}
PIXELS = {"image": "pixel_values", "video": "pixel_values_videos"}
CARRIERS = ("pixel_values", "mm_encoder_outputs", "image_hidden_states")  # how names of arguments with images begin


@dataclass(frozen=True, eq=False)
class OuterArguments:
    """What the outer model was called with; consumed by the decoder's pre-hook."""

    input_ids: Tensor | None = None
    attention_mask2d: Tensor | None = None
    pixels: bool = False
    embeds_only: bool = False
    encodes: bool = False  # this very forward runs the vision encoder
    names: tuple[str, ...] = ()  # of all arguments that were given
    targets: Tensor | None = None  # Bool[B, L], rows whose next token is a label


def by_name(signature: inspect.Signature, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """Arguments of a call by parameter name, those of a `**kwargs` among them."""
    bound = dict(signature.bind_partial(*args, **kwargs).arguments)
    rest = bound.pop("kwargs", {})
    return bound | rest


def brings_pixels(arguments: Mapping[str, Any]) -> bool:
    """Whether a call of `generate` or of the outer model brings images that are still to be encoded."""
    return any(name.startswith("pixel_values") and value is not None for name, value in arguments.items())


def carries_pixels(name: str, value: Any) -> bool:
    """Without pixels in the call an image id is only a token, e.g. a candidate of prompt-lookup decoding."""
    if value is None or (isinstance(value, dict) and not value):
        return False
    return name.startswith(CARRIERS)

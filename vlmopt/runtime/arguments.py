"""What `generate`, the outer model and its feature functions are called with, under the names of tested releases."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

MODALITIES = {"image": "get_image_features", "video": "get_video_features"}
# The names under which feature functions take pixels: some take videos as images, Video-LLaVA names its images.
PIXELS = {"image": ("pixel_values", "pixel_values_images"), "video": ("pixel_values_videos", "pixel_values")}
PER_LAYER = "per_layer_inputs"  # gemma3n and gemma4 feed every layer an embedding of its own
CARRIERS = ("pixel_values", "mm_encoder_outputs", "image_hidden_states")  # how names of arguments with images begin


@dataclass(frozen=True, eq=False)
class Request:
    """What `generate` was asked; a bare forward asks nothing."""

    length: int | None = None  # of the prompt
    ids: Tensor | None = None  # Long[B, L]
    mask: Tensor | None = None  # Bool[B, L]; with static caches models see 4-D ones
    images: bool = False
    branches: str | None = None  # why rows of one step are not yet the text: beams, candidates of assisted decoding


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


def pixels_in(modality: str, bound: Mapping[str, Any]) -> Any:
    """The pixels that a feature function is called with; None if it is handed none."""
    return next((bound[name] for name in PIXELS[modality] if bound.get(name) is not None), None)


def carries_pixels(name: str, value: Any) -> bool:
    """Without pixels in the call an image id is only a token, e.g. a candidate of prompt-lookup decoding."""
    if value is None or (isinstance(value, dict) and not value):
        return False
    return name.startswith(CARRIERS)


def images_in(arguments: Mapping[str, Any]) -> list[Tensor]:
    """The tensors that carry images in a call of the outer model, pixels or what an encoder made of them."""

    def tensors(value: Any) -> list[Tensor]:
        if isinstance(value, Tensor):
            return [value]
        parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
        return [tensor for part in parts for tensor in tensors(part)]

    names = sorted(name for name in arguments if name.startswith(CARRIERS))
    return [tensor for name in names for tensor in tensors(arguments[name])]


def same_images(one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    """Whether two passes bring the same images, as far as both bring some."""
    if not one or not other:
        return True
    return len(one) == len(other) and all(a is b or torch.equal(a, b) for a, b in zip(one, other, strict=True))


class EncodingPlan(Protocol):
    """What runs in the place of a feature function."""

    def run(self, original: Callable[..., Any], bound: dict[str, Any]) -> tuple[Any, list[int]]:
        """The function's output at full length, and the tokens of every picture."""

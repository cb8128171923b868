"""What `generate`, the outer model and its feature functions are called with, under the names of tested releases."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

MODALITIES = {"image": "get_image_features", "video": "get_video_features"}
# The names under which feature functions take pixels: some take videos as images, Video-LLaVA names its images.
PIXELS = {
    "image": ("pixel_values", "pixel_values_images", "image_pixel_values"),
    "video": ("pixel_values_videos", "pixel_values"),
}
PER_LAYER = "per_layer_inputs"  # gemma3n and gemma4 feed every layer an embedding of its own
TO_ENCODE = ("pixel_values", "image_pixel_values")  # how names of arguments with pixels begin
CARRIERS = (*TO_ENCODE, "mm_encoder_outputs", "image_hidden_states")  # and with images, encoded or not


@dataclass(frozen=True, eq=False)
class Request:
    """What `generate` was asked; a bare forward asks nothing."""

    length: int | None = None  # of the prompt
    ids: Tensor | None = None  # Long[B, L]
    mask: Tensor | None = None  # Bool[B, L]; with static caches models see 4-D ones
    prompts: int | None = None  # each is one row of ids or embeddings, before beams and returned sequences expand it
    images: bool = False
    branches: str | None = None  # why rows of one step are not yet the text: beams, candidates of assisted decoding
    ends: tuple[int, ...] = ()  # ids with which a text ends, or is filled up behind its end


@dataclass(frozen=True, eq=False)
class OuterArguments:
    """What the outer model was called with, by name; consumed by the decoder's pre-hook."""

    given: Mapping[str, Any]
    targets: Tensor | None = None  # Bool[B, L], rows whose next token is a label
    asked: Tensor | None = None  # Bool[B, L], the mask of padding that `generate` goes by

    def asked_with(self, mask: Tensor | None, length: int, batch: int) -> OuterArguments:
        """Return these arguments beside the mask of padding that `generate` goes by.

        Args:
            mask: Bool[B, L] of the prompt; what lies behind it is real. length: the end of this chunk. batch: its rows,
                beams among them.
        """
        if mask is None or batch % len(mask):
            return self
        mask = pad(mask, (0, max(length - mask.shape[1], 0)), value=True)[:, :length]
        return replace(self, asked=mask.repeat_interleave(batch // len(mask), 0))

    @property
    def input_ids(self) -> Tensor | None:
        """Long[B, L]."""
        return self.given.get("input_ids")

    @property
    def attention_mask2d(self) -> Tensor | None:
        """[B, L]: the mask where it has that shape, else the one that `generate` goes by; None without either."""
        mask = self.given.get("attention_mask")
        return mask if isinstance(mask, Tensor) and mask.ndim == 2 else self.asked

    @property
    def embeds_only(self) -> bool:
        """Whether embeddings came in the place of ids."""
        return self.input_ids is None and self.given.get("inputs_embeds") is not None

    @property
    def encodes(self) -> bool:
        """Whether this very forward runs the vision encoder."""
        return brings_pixels(self.given)

    @property
    def pixels(self) -> bool:
        """Whether images come along, encoded or not."""
        return any(carries_pixels(name, value) for name, value in self.given.items())

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all arguments that were given."""
        return tuple(name for name, value in self.given.items() if value is not None)


def by_name(signature: inspect.Signature, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """Return the arguments of a call by parameter name, those of a `**kwargs` among them; of an `*args` under "*"."""
    bound: dict[str, Any] = dict(signature.bind_partial(*args, **kwargs).arguments)
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            bound |= bound.pop(parameter.name, {})
        elif parameter.kind is parameter.VAR_POSITIONAL and parameter.name in bound:
            bound["*"] = bound.pop(parameter.name)
    return bound


def brings_pixels(arguments: Mapping[str, Any]) -> bool:
    """Return whether a call of `generate` or of the outer model brings images that are still to be encoded."""
    return any(name.startswith(TO_ENCODE) and value is not None for name, value in arguments.items())


def pixels_in(modality: str, bound: Mapping[str, Any]) -> Any:
    """Return the pixels that a feature function is called with; None if it is handed none."""
    return next((bound[name] for name in PIXELS[modality] if bound.get(name) is not None), None)


def images_in(arguments: Mapping[str, Any]) -> list[Tensor]:
    """Return the tensors that carry images in a call of the outer model: pixels, or what an encoder made of them."""

    def tensors(value: Any) -> list[Tensor]:
        if isinstance(value, Tensor):
            return [value]
        parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
        return [tensor for part in parts for tensor in tensors(part)]

    names = sorted(name for name in arguments if name.startswith(CARRIERS))
    return [tensor for name in names for tensor in tensors(arguments[name])]


def same_images(one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    """Return whether two passes bring the same images, as far as both bring some."""
    if not one or not other:
        return True
    return len(one) == len(other) and all(a is b or torch.equal(a, b) for a, b in zip(one, other, strict=True))


def carries_pixels(name: str, value: Any) -> bool:
    """Return whether an argument carries pixels.

    Without pixels in the call an image id is only a token, e.g. a candidate of prompt-lookup decoding.
    """
    if value is None or (isinstance(value, dict) and not value):
        return False
    return name.startswith(CARRIERS)


class EncodingPlan(Protocol):
    """Base of what runs in the place of a feature function."""

    def run(self, original: Callable[..., Any], bound: dict[str, Any]) -> tuple[Any, list[int]]:
        """Return the function's output at full length, and the tokens of every image."""

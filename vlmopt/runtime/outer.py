"""Touch points A and B: the outer model says where visual tokens are, the feature functions say how they group."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..families.base import Piece
from . import resize, tower
from .context import TARGETS
from .encoder import Encoded
from .stand_in import StandIn

if TYPE_CHECKING:
    from .session import Session

MODALITIES = {"image": "get_image_features", "video": "get_video_features"}
PIXELS = {"image": "pixel_values", "video": "pixel_values_videos"}
CARRIERS = ("pixel_values", "mm_encoder_outputs", "image_hidden_states")  # how names of arguments with images begin


@dataclass
class OuterArguments:
    """What the outer model was called with; consumed by the decoder's pre-hook."""

    input_ids: Tensor | None
    attention_mask2d: Tensor | None
    pixels: bool
    embeds_only: bool
    encodes: bool = False  # this very forward runs the vision encoder
    names: tuple[str, ...] = ()  # of all arguments that were given
    targets: Tensor | None = None  # Bool[B, L], rows whose next token is a label


@dataclass
class Features:
    """What the vision encoder returned in this call: the pieces of its output, per modality, in order."""

    pieces: dict[str, list[Piece]] = field(default_factory=dict)
    encoded: Encoded = field(default_factory=Encoded)
    pixels: dict[str, list[Tensor]] = field(default_factory=dict)  # per modality, only where a method reads them
    novelty: dict[str, list[Tensor]] = field(default_factory=dict)  # per modality, before the tower
    given: list[tuple[str, Callable[..., Any], dict[str, Any]]] = field(default_factory=list)  # calls, for a first pass
    plan: tower.TowerPlan | None = None  # while the tower runs on some of its patches
    depth: int = 0  # a video function may call the image function

    def clear(self) -> None:
        for store in (self.pieces, self.encoded, self.pixels, self.novelty, self.given):
            store.clear()


def by_name(signature: inspect.Signature, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """Arguments of a call by parameter name, those of a `**kwargs` among them."""
    bound = dict(signature.bind_partial(*args, **kwargs).arguments)
    rest = bound.pop("kwargs", {})
    return bound | rest


class FeatureProbe(StandIn):
    """Stands in for `get_image_features`: records lengths and grids, times the tower, changes its pixels."""

    def __init__(self, session: Session, modality: str) -> None:
        super().__init__(session, session.anatomy.outer, MODALITIES[modality])
        self.modality = modality
        self.__signature__ = inspect.signature(self.original)  # `generate` picks its arguments by name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        call = self.session.running_call()
        if call is None or call.features.depth:
            return self.original(*args, **kwargs)
        bound = by_name(self.__signature__, *args, **kwargs)
        start = call.clock.now()
        call.features.depth += 1
        given = bound.get(PIXELS[self.modality], bound.get("pixel_values"))
        if self.session.reads_pixels and given is not None:
            call.features.pixels.setdefault(self.modality, []).append(given)
        if self.session.first_passes and given is not None:
            call.features.given.append((self.modality, self.original, bound))
        try:
            plan = resize.plan_for(self.session, self.modality, bound) or tower.plan_for(
                self.session, self.modality, bound
            )
            if plan is None:
                out = self.original(*args, **kwargs)
                lengths = feature_lengths(out)
            else:
                out, lengths = plan.run(self.original, bound)
        finally:
            call.features.depth -= 1
        call.vision.append((start, call.clock.now()))
        pieces = self.session.family.layout(self.modality, lengths, bound, self.session.model.config)
        call.features.pieces.setdefault(self.modality, []).extend(pieces)
        return out


def feature_lengths(out: Any) -> list[int]:
    """Number of tokens of every item in what a feature function returned, in any of its shapes across versions."""
    if hasattr(out, "pooler_output"):
        out = out.last_hidden_state if out.pooler_output is None else out.pooler_output  # Fuyu has no projector
    if isinstance(out, tuple) and len(out) == 2 and isinstance(out[1], list):  # up to 4.57: (embeds, deepstack)
        out = out[0]
    if isinstance(out, Tensor):
        out = out[None] if out.ndim == 2 else out
        return [out.shape[1]] * out.shape[0]
    return [item.shape[0] for part in out for item in ([part] if part.ndim == 2 else part)]


class OuterHook:
    """Forward pre-hook of the outer model."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.signature = inspect.signature(type(session.anatomy.outer).forward)

    def __call__(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        bound = by_name(self.signature, module, *args, **kwargs) if args else kwargs
        call = self.session.open_forward_call()
        encodes = brings_pixels(bound)
        if encodes:
            call.features.clear()  # this forward encodes by itself, in older releases at every uncached step
            call.patches.clear()
        mask = bound.get("attention_mask")
        ids = bound.get("input_ids")
        call.outer = OuterArguments(
            input_ids=ids,
            attention_mask2d=mask if isinstance(mask, Tensor) and mask.ndim == 2 else None,
            pixels=any(carries_pixels(name, value) for name, value in bound.items()),
            embeds_only=ids is None and bound.get("inputs_embeds") is not None,
            encodes=encodes,
            names=tuple(name for name, value in bound.items() if value is not None),
            targets=TARGETS.get(),
        )
        TARGETS.set(None)


def brings_pixels(arguments: Mapping[str, Any]) -> bool:
    """Whether a call of `generate` or of the outer model brings images that are still to be encoded."""
    return any(name.startswith("pixel_values") and value is not None for name, value in arguments.items())


def carries_pixels(name: str, value: Any) -> bool:
    """Without pixels in the call an image id is only a token, e.g. a candidate of prompt-lookup decoding."""
    if value is None or (isinstance(value, dict) and not value):
        return False
    return name.startswith(CARRIERS)

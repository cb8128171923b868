"""Touch points A and B: the outer model says where visual tokens are, the feature functions say how they group."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from vlmopt.pruning import FirstPassRows, Pixels

from . import resize, tower
from .arguments import MODALITIES, PIXELS, OuterArguments, brings_pixels, by_name, carries_pixels
from .call import CALL, Call, Session
from .cells import GivenPixels
from .first_pass import GivenCalls
from .predicting import TARGETS
from .stand_in import StandIn
from .tower import Patches


class FeatureProbe(StandIn):
    """Stands in for `get_image_features`: records lengths and grids, times the tower, changes its pixels."""

    def __init__(self, session: Session, modality: str) -> None:
        super().__init__(session, session.anatomy.outer, MODALITIES[modality])
        self.modality = modality
        needs = [need for method in session.selectors for need in method.captures]
        self.keeps_pixels = any(isinstance(need, Pixels) for need in needs)
        self.keeps_calls = any(isinstance(need, FirstPassRows) for need in needs)
        self.__signature__ = inspect.signature(self.original)  # `generate` picks its arguments by name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        call = self.session.running_call()
        if call is None or call.features.depth:
            return self.original(*args, **kwargs)
        bound = by_name(self.__signature__, *args, **kwargs)
        start = call.clock.now()
        call.features.depth += 1
        given = bound.get(PIXELS[self.modality], bound.get("pixel_values"))
        if self.keeps_pixels and given is not None:
            call.features.slot(GivenPixels).setdefault(self.modality, []).append(given)
        if self.keeps_calls and given is not None:
            call.features.slot(GivenCalls).append((self.modality, self.original, bound))
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
        call.page.vision.append((start, call.clock.now()))
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
        call = self.open_call()
        encodes = brings_pixels(bound)
        if encodes:
            call.features.clear()  # this forward encodes by itself, in older releases at every uncached step
            call.page.slot(Patches).clear()
        mask = bound.get("attention_mask")
        ids = bound.get("input_ids")
        call.arguments = OuterArguments(
            input_ids=ids,
            attention_mask2d=mask if isinstance(mask, Tensor) and mask.ndim == 2 else None,
            pixels=any(carries_pixels(name, value) for name, value in bound.items()),
            embeds_only=ids is None and bound.get("inputs_embeds") is not None,
            encodes=encodes,
            names=tuple(name for name, value in bound.items() if value is not None),
            targets=TARGETS.get(),
        )
        TARGETS.set(None)

    def open_call(self) -> Call:
        """The running `generate` of this session, or a new call for a bare forward."""
        call = self.session.running_call()
        if call is None or not call.by_generate:
            around = CALL.get() if call is None else call.around  # an earlier forward of ours was interrupted
            call = self.session.new_call(around=around)
            CALL.set(call)
        return call

"""At the feature functions: what they are given, what runs in their place, and how their output is cut into pieces."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ...families import Family
from .. import compat
from ..arguments import MODALITIES, PIXELS, by_name, pixels_in
from ..call import Call, Session
from ..capture import Capture
from ..component import Components
from .stand_in import StandIn


class FeatureFunction(StandIn):
    """Stand in for `get_image_features`: record lengths and grids, time the tower, change its pixels."""

    def __init__(
        self, session: Session, modality: str, captures: Sequence[Capture[Any]], encoder: nn.Module | None = None
    ) -> None:
        """Stand in for the feature function of a modality, or for `forward` of the encoder that a family names."""
        owner, name = (session.structure.outer, MODALITIES[modality]) if encoder is None else (encoder, "forward")
        super().__init__(session, owner, name)
        self.modality, self.captures = modality, captures
        self.required = arguments_of(session.family, modality) if encoder is None else ()
        self.__signature__ = inspect.signature(self.original)  # `generate` picks its arguments by name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        call = self.session.running_call()
        if call is None or call.features.depth:
            return self.original(*args, **kwargs)
        bound = by_name(self.__signature__, *args, **kwargs)
        compat.require(self.required, bound, self.name)
        for component in self.session.slot(Components):
            if others := component.change_pixels(call, self.modality, bound):
                bound |= others
                args, kwargs = bound.pop("*", ()), bound
        call.features.depth += 1
        try:
            with call.ledger.timed(call.page.vision):
                out, lengths = self.encode(call, bound, *args, **kwargs)
        finally:
            call.features.depth -= 1
        pieces = self.session.family.layout(self.modality, lengths, bound, self.session.model.config)
        call.features.pieces.setdefault(self.modality, []).extend(pieces)
        return out

    def encode(self, call: Call, bound: dict[str, Any], *args: Any, **kwargs: Any) -> tuple[Any, list[int]]:
        """Return what the function returns, or what a component runs in its place, and the tokens of every image."""
        if pixels_in(self.modality, bound) is not None:
            for capture in self.captures:
                capture.take(call, self.modality, self.original, bound)
        plans = (component.plan_encoding(self.modality, bound) for component in self.session.slot(Components))
        plan = next((plan for plan in plans if plan is not None), None)
        if plan is not None:
            return plan.run(self.original, bound)
        out = self.original(*args, **kwargs)
        return out, feature_lengths(out)


def arguments_of(family: Family, modality: str) -> compat.Names:
    """Return what a described family's feature function has to be handed: pixels, and what its grids follow from."""
    if not family.described:
        return ()
    return (PIXELS[modality], family.sizes[modality]) if modality in family.sizes else (PIXELS[modality],)


def feature_lengths(out: Any) -> list[int]:
    """Return the number of tokens of every item in what a feature function returned, in any of its shapes."""
    if hasattr(out, "pooler_output"):
        out = out.last_hidden_state if out.pooler_output is None else out.pooler_output  # Fuyu has no projector
    if isinstance(out, tuple) and len(out) == 2 and isinstance(out[1], list):  # up to 4.57: (embeds, deepstack)
        out = out[0]
    if isinstance(out, Tensor):
        out = out[None] if out.ndim == 2 else out
        return [out.shape[1]] * out.shape[0]
    return [item.shape[0] for part in out for item in ([part] if part.ndim == 2 else part)]

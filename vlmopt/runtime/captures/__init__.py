"""What methods may ask to read: one file per kind of signal, listed here."""

from __future__ import annotations

from typing import Any

from vlmopt.attention_fix import Residual, TextOnly, Tower
from vlmopt.pruning import (
    Activations,
    AttentionRows,
    FirstPassRows,
    HiddenStates,
    LookAheadRows,
    Novelty,
    Pixels,
    PixelScale,
    Projector,
    Signal,
    TextEmbeds,
    VisionAttention,
    VisionKeys,
    VisualEmbeds,
    Weights,
)

from ..capture import Capture
from .activations import GatedActivations
from .embeds import Hidden, OfText, OfVisual, Trained
from .first_pass import FirstPass
from .images import OfImages
from .lookahead import RowsAhead
from .pixels import NoveltyBefore, Scale, UnderTokens
from .projector import WholeProjector
from .residual import ENTERING
from .rows import Rows
from .text_only import WithoutImages
from .tower import Keys, Received

__all__ = ["CAPTURES", "capture_of"]

CAPTURES: dict[type[Signal], Capture[Any]] = {
    Activations: GatedActivations(),
    AttentionRows: Rows(),
    FirstPassRows: FirstPass(),
    HiddenStates: Hidden(),
    LookAheadRows: RowsAhead(),
    Novelty: NoveltyBefore(),
    Pixels: UnderTokens(),
    PixelScale: Scale(),
    Projector: WholeProjector(),
    Residual: ENTERING,
    TextEmbeds: OfText(),
    TextOnly: WithoutImages(),
    Tower: OfImages(),
    VisionAttention: Received(),
    VisionKeys: Keys(),
    VisualEmbeds: OfVisual(),
    Weights: Trained(),
}


def capture_of(need: Signal) -> Capture[Any]:
    """Return how a signal is captured.

    Raises:
        TypeError: nothing is known of its class.
    """
    if type(need) not in CAPTURES:
        known = ", ".join(kind.__name__ for kind in CAPTURES)
        raise TypeError(f"{need!r} is no signal of this package, which has {known}; name one of these in `needs`")
    return CAPTURES[type(need)]

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
    Sinks,
    TextEmbeds,
    VisionAttention,
    VisionKeys,
    VisualEmbeds,
    Weights,
)

from ..capture import Capture
from .activations import ActivationsCapture
from .embeds import HiddenStatesCapture, TextEmbedsCapture, VisualEmbedsCapture, WeightsCapture
from .first_pass import FirstPassRowsCapture
from .lookahead import LookAheadRowsCapture
from .pixels import NoveltyCapture, PixelScaleCapture, PixelsCapture
from .projector import ProjectorCapture
from .residual import ENTERING
from .rows import AttentionRowsCapture
from .sinks import SinksCapture
from .text_only import TextOnlyCapture
from .tower import TowerCapture
from .vision_attention import VisionAttentionCapture, VisionKeysCapture

__all__ = ["CAPTURES", "capture_of"]

CAPTURES: dict[type[Signal], Capture[Any]] = {
    Activations: ActivationsCapture(),
    AttentionRows: AttentionRowsCapture(),
    FirstPassRows: FirstPassRowsCapture(),
    HiddenStates: HiddenStatesCapture(),
    LookAheadRows: LookAheadRowsCapture(),
    Novelty: NoveltyCapture(),
    Pixels: PixelsCapture(),
    PixelScale: PixelScaleCapture(),
    Projector: ProjectorCapture(),
    Residual: ENTERING,
    Sinks: SinksCapture(),
    TextEmbeds: TextEmbedsCapture(),
    TextOnly: TextOnlyCapture(),
    Tower: TowerCapture(),
    VisionAttention: VisionAttentionCapture(),
    VisionKeys: VisionKeysCapture(),
    VisualEmbeds: VisualEmbedsCapture(),
    Weights: WeightsCapture(),
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

"""Change the logits of every step: contrasts with a second stream, early layers, and the controls beside them.

Pure functions of tensors by name; `vlmopt.runtime` runs second streams and reads early layers.
"""

from __future__ import annotations

from vlmopt.attention_fix import contrast

from .base import Away, Contrast, Decoding, EarlyExit, SeesPixels, register, registry
from .blank_contrast import BlankContrast
from .deco import DeCo, deco
from .dola import DoLa
from .local_contrast import LocalContrast
from .plausibility import Plausibility
from .text_contrast import TextContrast
from .vcd import VCD
from .yes_bias import YesBias, yes_ids

__all__ = [
    "VCD",
    "Away",
    "BlankContrast",
    "Contrast",
    "DeCo",
    "Decoding",
    "DoLa",
    "EarlyExit",
    "LocalContrast",
    "Plausibility",
    "SeesPixels",
    "TextContrast",
    "YesBias",
    "contrast",
    "deco",
    "register",
    "registry",
    "yes_ids",
]

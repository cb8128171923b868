"""Which visual tokens to keep: pure tensor algorithms that know torch only."""

from __future__ import annotations

from .base import ScoreSelector, Selector, register, registry
from .fastv import FastV
from .pack import pack
from .positions import repack_positions
from .random import Random
from .resize import Resize
from .runs import run_ends, run_mean
from .signals import (
    TEXT,
    Activations,
    AttentionRows,
    HiddenStates,
    LookAheadRows,
    Pixels,
    Projector,
    ProjectorCall,
    Signal,
    TextEmbeds,
    TwoLayers,
    VisionAttention,
    VisionKeys,
    VisualEmbeds,
)
from .tokens import Selection, VisualTokens, Written
from .uniform import Uniform

__all__ = [
    "TEXT",
    "Activations",
    "AttentionRows",
    "FastV",
    "HiddenStates",
    "LookAheadRows",
    "Pixels",
    "Projector",
    "ProjectorCall",
    "Random",
    "Resize",
    "ScoreSelector",
    "Selection",
    "Selector",
    "Signal",
    "TextEmbeds",
    "TwoLayers",
    "Uniform",
    "VisionAttention",
    "VisionKeys",
    "VisualEmbeds",
    "VisualTokens",
    "Written",
    "pack",
    "register",
    "registry",
    "repack_positions",
    "run_ends",
    "run_mean",
]

"""Which visual tokens to keep: pure tensor algorithms that know torch only."""

from __future__ import annotations

from .attention_topk import AttentionTopK
from .base import AttentionRows, ScoreSelector, Selection, Selector, Signal, VisualTokens, register, registry
from .pack import pack
from .positions import repack_positions
from .random import Random
from .resize import Resize
from .runs import run_ends, run_mean
from .uniform import Uniform

__all__ = [
    "AttentionRows",
    "AttentionTopK",
    "Random",
    "Resize",
    "ScoreSelector",
    "Selection",
    "Selector",
    "Signal",
    "Uniform",
    "VisualTokens",
    "pack",
    "register",
    "registry",
    "repack_positions",
    "run_ends",
    "run_mean",
]

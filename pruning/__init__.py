"""Which visual tokens to keep: pure tensor algorithms that know torch only."""

from __future__ import annotations

from .base import ScoreSelector, Selector, register, registry
from .cd_pruner import CDPruner
from .cen_prune import CenPrune
from .core_matching import CoreMatching
from .debias import Debias
from .div_prune import DivPrune
from .evs import EVS
from .fastv import FastV
from .holov import HoloV
from .pack import pack
from .positions import repack_positions
from .profile import DebiasProfile
from .pyramid_drop import PyramidDrop
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
from .sparse_vlm import SparseVLM
from .tokens import Selection, VisualTokens, Written
from .uniform import Uniform
from .vis_pruner import VisPruner
from .vision_zip import VisionZip
from .zeroth_order import ZeroOrder
from .zipvl import ZipVL

__all__ = [
    "EVS",
    "TEXT",
    "Activations",
    "AttentionRows",
    "CDPruner",
    "CenPrune",
    "CoreMatching",
    "Debias",
    "DebiasProfile",
    "DivPrune",
    "FastV",
    "HiddenStates",
    "HoloV",
    "LookAheadRows",
    "Pixels",
    "Projector",
    "ProjectorCall",
    "PyramidDrop",
    "Random",
    "Resize",
    "ScoreSelector",
    "Selection",
    "Selector",
    "Signal",
    "SparseVLM",
    "TextEmbeds",
    "TwoLayers",
    "Uniform",
    "VisPruner",
    "VisionAttention",
    "VisionKeys",
    "VisionZip",
    "VisualEmbeds",
    "VisualTokens",
    "Written",
    "ZeroOrder",
    "ZipVL",
    "pack",
    "register",
    "registry",
    "repack_positions",
    "run_ends",
    "run_mean",
]

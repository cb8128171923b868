"""Choose which visual tokens to keep: pure tensor algorithms that know torch only."""

from __future__ import annotations

from .base import ScoreSelector, Selector, register, registry
from .cd_pruner import CDPruner
from .cen_prune import CenPrune
from .core_matching import CoreMatching
from .dart import DART
from .debias import Debias
from .div_prune import DivPrune
from .evs import EVS
from .fastv import FastV
from .fastvid import FastVID
from .first_pass import FirstPass
from .focusui import FocusUI, InstructionSimilarity
from .hiprune import HiPrune
from .holov import HoloV
from .mmtok import MMTok
from .pack import pack
from .pixel_redundancy import PixelRedundancy
from .positions import repack_positions
from .profile import DebiasProfile
from .pyramid_drop import PyramidDrop
from .random import Random
from .resize import Resize
from .runs import run_ends, run_mean
from .scope import Scope
from .scorer import Scorer, box_overlap, kl_loss, labels
from .signals import (
    TEXT,
    Activations,
    AttentionRows,
    FirstPassRows,
    HiddenStates,
    LookAheadRows,
    Novelty,
    Pixels,
    PixelScale,
    Projector,
    ProjectorCall,
    Signal,
    Sinks,
    TextEmbeds,
    TwoLayers,
    VisionAttention,
    VisionKeys,
    VisualEmbeds,
    Weights,
)
from .sparse_vlm import SparseVLM
from .tokens import Selection, VisualTokens, Written
from .ui_graph import UIGraph, ui_graph
from .uniform import Uniform
from .vidcom2 import VidCom2
from .vis_pruner import VisPruner
from .vision_zip import VisionZip
from .zeroth_order import ZeroOrder
from .zipvl import ZipVL

__all__ = [
    "DART",
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
    "FastVID",
    "FirstPass",
    "FirstPassRows",
    "FocusUI",
    "HiPrune",
    "HiddenStates",
    "HoloV",
    "InstructionSimilarity",
    "LookAheadRows",
    "MMTok",
    "Novelty",
    "PixelRedundancy",
    "PixelScale",
    "Pixels",
    "Projector",
    "ProjectorCall",
    "PyramidDrop",
    "Random",
    "Resize",
    "Scope",
    "ScoreSelector",
    "Scorer",
    "Selection",
    "Selector",
    "Signal",
    "Sinks",
    "SparseVLM",
    "TextEmbeds",
    "TwoLayers",
    "UIGraph",
    "Uniform",
    "VidCom2",
    "VisPruner",
    "VisionAttention",
    "VisionKeys",
    "VisionZip",
    "VisualEmbeds",
    "VisualTokens",
    "Weights",
    "Written",
    "ZeroOrder",
    "ZipVL",
    "box_overlap",
    "kl_loss",
    "labels",
    "pack",
    "register",
    "registry",
    "repack_positions",
    "run_ends",
    "run_mean",
    "ui_graph",
]

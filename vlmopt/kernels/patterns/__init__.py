"""Choose which keys each tile of query rows reads, per head: patterns by name, and what they are built from."""

from __future__ import annotations

from .a_shape import AShape
from .base import Pattern, register, registry
from .boundary_2d import Boundary2D
from .dense import DensePattern
from .flex_prefill import FlexPrefill
from .grid import GridSparse
from .min_p import MinP
from .minference_blocks import MInferenceBlocks
from .pbs_attn import PBSAttn
from .prefill import Prefill
from .proxy_attn import ProxyAttn
from .psa import PSA
from .q_boundary import QBoundary
from .sampled import Sampled
from .tri_shape import TriShape
from .vertical_slash import VerticalSlash
from .view import View, ViewPattern
from .x_attention import XAttention

__all__ = [
    "PSA",
    "AShape",
    "Boundary2D",
    "DensePattern",
    "FlexPrefill",
    "GridSparse",
    "MInferenceBlocks",
    "MinP",
    "PBSAttn",
    "Pattern",
    "Prefill",
    "ProxyAttn",
    "QBoundary",
    "Sampled",
    "TriShape",
    "VerticalSlash",
    "View",
    "ViewPattern",
    "XAttention",
    "register",
    "registry",
]

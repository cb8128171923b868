"""Which keys each tile of query rows reads, per head: patterns by name, and what they are built from."""

from __future__ import annotations

from .a_shape import AShape
from .base import Pattern, Prefill, register, registry
from .boundary_2d import Boundary2D
from .dense import DensePattern
from .grid import GridSparse
from .min_p import MinP
from .q_boundary import QBoundary
from .tri_shape import TriShape
from .vertical_slash import VerticalSlash
from .view import View, ViewPattern

__all__ = [
    "AShape",
    "Boundary2D",
    "DensePattern",
    "GridSparse",
    "MinP",
    "Pattern",
    "Prefill",
    "QBoundary",
    "TriShape",
    "VerticalSlash",
    "View",
    "ViewPattern",
    "register",
    "registry",
]

"""All components, in the order in which their hooks are put in place."""

from __future__ import annotations

from ..component import Component
from .corrections import Corrections
from .diagnosis import Diagnoses
from .eviction import Evicting
from .grouped_decode import GroupedDecode
from .guidance import Guidance
from .pruning import Pruning
from .resize import Resizing
from .sparse_prefill import SparsePrefills
from .tower_pruning import TowerPruning

COMPONENTS: tuple[type[Component], ...] = (
    Pruning,  # first: hooks behind it see what is left
    SparsePrefills,
    Corrections,
    GroupedDecode,
    Evicting,  # behind the marks that corrections make
    Guidance,
    Diagnoses,
    Resizing,
    TowerPruning,  # behind the captures, which read what the tower really ran on
)

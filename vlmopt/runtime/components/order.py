"""All components, in the order in which their hooks are put in place."""

from __future__ import annotations

from ..component import Component
from .corrections import Corrections
from .decoding import Deciding
from .diagnosis import Diagnoses
from .early_layers import EarlyLayers
from .eviction import Evicting
from .grouped_decode import GroupedDecode
from .marks import Marking
from .pruning import Pruning
from .query_scale import QueryScale
from .resize import Resizing
from .second_stream import SecondStream
from .sparse_prefill import SparsePrefills
from .sparse_reading import SparseReadings
from .text_beside import TextBeside
from .tower_pruning import TowerPruning
from .watchdog import Watchdog

COMPONENTS: tuple[type[Component], ...] = (
    Pruning,  # first: hooks behind it see what is left
    QueryScale,
    Marking,
    SparsePrefills,
    Corrections,  # from here on, what reads marks or adds to them
    TextBeside,
    Watchdog,
    SparseReadings,  # before what would read all keys in its place
    GroupedDecode,
    Evicting,
    SecondStream,  # behind marks, which say whether there is an image
    EarlyLayers,
    Deciding,
    Diagnoses,
    Resizing,
    TowerPruning,  # behind the captures, which read what the tower really ran on
)

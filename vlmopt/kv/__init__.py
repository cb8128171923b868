"""Which keys and values stay when the prompt is over: evictions by name, pure functions of tensors."""

from __future__ import annotations

from .adaptive import adaptive, sparsity
from .base import Eviction, register, registry
from .budgets import kept, ratios
from .choose import choose
from .importance import ImportanceEviction
from .key_diff import KeyDiff
from .pooling import neighbours
from .pyramid import pyramid
from .random_kv import RandomKV
from .snap_kv import SnapKV
from .view import KVView, Probe
from .vl_cache import VLCache

__all__ = [
    "Eviction",
    "ImportanceEviction",
    "KVView",
    "KeyDiff",
    "Probe",
    "RandomKV",
    "SnapKV",
    "VLCache",
    "adaptive",
    "choose",
    "kept",
    "neighbours",
    "pyramid",
    "ratios",
    "register",
    "registry",
    "sparsity",
]

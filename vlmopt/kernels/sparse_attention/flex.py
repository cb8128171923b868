"""FlexAttention for indices that are blocks of keys, in order: torch's compiled kernels, on CPU and GPU."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from .index import Keys, SparseIndex, tile_count


def flex_attention_ ...

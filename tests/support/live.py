"""Bytes of tensors that are alive at once while something runs."""

from __future__ import annotations

from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode


class Live(TorchDispatchMode):
    """Count the storages that operations make, from when they are made until nothing holds them; `peak` is the most."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self.before: dict[int, StorageWeakRef] = {}  # weights and inputs
        self.made: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.made = {key: (ref, size) for key, (ref, size) in self.made.items() if not ref.expired()}
        self.before = {key: ref for key, ref in self.before.items() if not ref.expired()}
        for ref, _ in map(weak, tensors((args, kwargs))):
            if ref.cdata not in self.made:
                self.before[ref.cdata] = ref
        out = func(*args, **(kwargs or {}))
        for ref, size in map(weak, tensors(out)):
            if ref.cdata not in self.before:
                self.made[ref.cdata] = ref, size
        self.peak = max(self.peak, sum(size for _, size in self.made.values()))
        return out


def tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def weak(tensor: torch.Tensor) -> tuple[StorageWeakRef, int]:
    storage = tensor.untyped_storage()
    return StorageWeakRef(storage), storage.nbytes()

"""Sparse reading as a policy asks for it: which layers read all keys while decoding, and how few the others read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from vlmopt.attention_fix.layers import check_layers, layer_numbers
from vlmopt.core import Configured, check_depth, near, setting, shown, validate

from .layer_reuse import LayerReuse


@dataclass(frozen=True, kw_only=True)
class SparseReading(Configured):
    """Let some layers read all keys for a generated token, and the layers behind each only what it found worth reading.

    A layer that reads all keys chooses, for every key-value head, those to which any of its query heads attends most;
    every token chooses anew. Nothing leaves the cache: it saves time in long contexts, never memory. TidalDecode (Fast
    and Accurate LLM Decoding with Position Persistent Sparse Attention, arXiv 2410.05076) names the layers once for
    all; HyLRA (Hybrid Layer Reuse Attention, arXiv 2602.00777) finds them offline for one model, as `reuse` does.

    Raises:
        TypeError, ValueError: a setting of the wrong type or out of range.
    """

    keep_ratio: float = setting(0.0625, "Fraction of the keys that the other layers read.", "float", above=0, max=1)
    least: int = setting(256, "Keys that they read at least.", "int", min=1)
    full: str = setting("0:3,41%", "Layers that read all keys; the last one before a layer chooses for it.", "str")
    min_keys: int = setting(8192, "Keys of a layer below which it reads all of them.", "int", min=1)
    reuse: LayerReuse | None = field(
        default=None,
        metadata={"help": "What a search measured of layers that reuse choices; it then names the layers."},
    )
    max_error: float = setting(
        0.02,
        "Mean relative error of the layers' outputs up to which `reuse` lets layers reuse choices.",
        "float",
        min=0,
    )

    def __post_init__(self) -> None:
        validate(self, "read")
        check_layers(self.full, "read")
        if isinstance(self.reuse, Mapping):
            object.__setattr__(self, "reuse", LayerReuse.from_dict(self.reuse))
        if self.reuse is not None and not isinstance(self.reuse, LayerReuse):
            raise TypeError(f"read: reuse must be a LayerReuse or its dict form, got {shown(self.reuse)}")
        if self.reuse is None and self.max_error != SparseReading.max_error:
            raise ValueError(
                "read: max_error limits the errors of `reuse`, which is not given; name the layers in `full`"
            )
        if self.reuse is not None and self.full != SparseReading.full:
            raise ValueError("read: give the layers that read all keys in `full`, or let `reuse` name them, not both")
        if self.reuse is not None and self.keep_ratio < self.reuse.keep_ratio:
            raise ValueError(
                f"read: keep_ratio={self.keep_ratio:g} is less than the {self.reuse.keep_ratio:g} at which the errors "
                "of reuse were measured, so they would be too low; search anew at this keep_ratio"
            )

    @property
    def is_identity(self) -> bool:
        """True if every layer reads all keys whatever the context."""
        return self.keep_ratio == 1

    def full_layers(self, depth: int) -> frozenset[int]:
        """Return the layers that read all keys; the first one always does."""
        if self.reuse is not None:
            return self.reuse.schedule(self.max_error)
        return layer_numbers(self.full, depth, "read") | {0}

    def count(self, keys: int) -> int:
        """Return how many of a layer's keys the others read."""
        return min(keys, max(self.least, math.ceil(keys * self.keep_ratio)))

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dict of the settings that differ from their defaults."""
        changed = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
        return {name: value.to_dict() if isinstance(value, LayerReuse) else value for name, value in changed.items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SparseReading:
        """Make sparse reading of what `to_dict` returned."""
        check_depth(data)
        names = [f.name for f in fields(cls)]
        for key in data:
            if key not in names:
                raise ValueError(
                    f"read: unknown setting {shown(key)}{near(str(key), names)}; settings: {', '.join(names)}"
                )
        return cls(**data)

    def check_model(self, model: Mapping[str, Any]) -> None:
        """Raise `ValueError` if the errors were measured on another model."""
        if self.reuse is not None:
            self.reuse.check(model)

"""Sparse prefill as a policy asks for it: a pattern for all heads or one per head, and where dense attention stays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from vlmopt.core import Configured, check_depth, setting, shown, unknown_setting, validate

from . import methods
from .head_patterns import HeadPatterns
from .kernels.patterns import Pattern, Sampled

MIN_LEN = {"cuda": 16384, "cpu": 4096}  # below, estimating costs more than it saves (see docs of the benchmark)
BACKENDS = ("auto", "reference", "native", "gather", "flex", "triton", "fa4")


@dataclass(frozen=True, kw_only=True)
class SparsePrefill(Configured):
    """Which pattern computes a long prompt's attention, in which layers, and from which length on.

    Decoding, prompts below `min_len`, sliding-window layers and layers in `dense_layers` stay dense.

    Raises:
        TypeError, ValueError: a setting of the wrong type or out of range; both a pattern and head patterns.
    """

    pattern: Pattern | None = field(
        default=None, metadata={"help": "The pattern of all heads; none: sampled, unless `heads` names one per head."}
    )
    heads: HeadPatterns | None = field(
        default=None, metadata={"help": "Patterns that a search found for every layer and head, or their dict form."}
    )
    min_len: int | None = setting(
        None, "Prompt tokens below which attention stays dense; none: 4096 on a CPU, 16384 elsewhere.", "int", min=1
    )
    dense_layers: int = setting(2, "First layers that stay dense: they are the least sparse ones.", "int", min=0)
    dense_text: int = setting(
        2048, "Text rows are computed densely if a prompt has at most so many; 0: never.", "int", min=0
    )
    max_work: float = setting(
        0.6, "Share of the causal cells above which a layer is computed densely after all.", "float", above=0
    )
    backend: str = setting(
        "auto",
        "What computes it; auto: triton on CUDA, native on CPUs with a C++ compiler, else gather.",
        "str",
        choices=BACKENDS,
    )
    recall_rows: int = setting(
        0, "Rows per layer whose kept share of the dense attention is measured for the report; 0: none.", "int", min=0
    )

    def __post_init__(self) -> None:
        validate(self, "prefill")
        if isinstance(self.heads, Mapping):
            object.__setattr__(self, "heads", HeadPatterns.from_dict(self.heads))
        if self.heads is not None and not isinstance(self.heads, HeadPatterns):
            raise TypeError(f"prefill: heads must be HeadPatterns or their dict form, got {shown(self.heads)}")
        if self.pattern is not None and not isinstance(self.pattern, Pattern):
            raise TypeError(
                f"prefill: pattern must be a pattern such as MinP(), got {shown(self.pattern)} of type "
                f"{type(self.pattern).__name__}"
            )
        if self.pattern is not None and self.heads is not None:
            raise ValueError("prefill: give a pattern for all heads, or the patterns of `heads`, not both")
        if self.pattern is None and self.heads is None:
            object.__setattr__(self, "pattern", Sampled())

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dict of the settings that differ from their defaults."""
        changed = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
        return {name: methods.encoded(value) for name, value in changed.items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SparsePrefill:
        """Make sparse prefill of what `to_dict` returned; the dict form of a pattern puts it in all heads."""
        check_depth(data)
        if "method" in data:
            return cls(pattern=methods.build(data))  # type: ignore[arg-type]
        names = [f.name for f in fields(cls)]
        for key in data:
            if key not in names:
                raise ValueError(unknown_setting("prefill", key, names))
        return cls(**{key: methods.decoded(value) if key == "pattern" else value for key, value in data.items()})

    @property
    def is_identity(self) -> bool:
        """True if nothing would ever be left out."""
        if self.heads is None:
            return self.pattern is not None and self.pattern.is_identity
        layers = range(self.dense_layers, len(self.heads.layers))
        return all(pattern.is_identity for layer in layers for pattern, _ in self.heads.groups(layer))

    def groups(self, layer: int, num_heads: int) -> list[tuple[Pattern, Tensor]]:
        """Return the patterns of a layer with the query heads Long[H] of each; empty where the layer is dense."""
        if layer < self.dense_layers:
            return []
        if self.pattern is not None:
            return [(self.pattern, torch.arange(num_heads))]
        return [] if self.heads is None else self.heads.groups(layer)

    def shortest(self, device: torch.device) -> int:
        """Return the number of prompt tokens from which on attention is sparse."""
        return self.min_len if self.min_len is not None else MIN_LEN.get(device.type, MIN_LEN["cuda"])

    def check_model(self, model: Mapping[str, Any]) -> None:
        """Raise `ValueError` if head patterns were found on another model."""
        if self.heads is not None:
            self.heads.check(model)

"""Which pattern computes which head: what an offline search found on one model, as a file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlmopt.core import Configured, check_depth, parse, shown

from . import methods
from .kernels.patterns import Pattern
from .layer_reuse import LayerReuse
from .paths import check_file

SCHEMA = 1
FACTS = ("model_type", "hidden_size", "layers", "num_heads", "num_kv_heads", "head_dim")
KEYS = ("schema", "model", "calibration", "patterns", "layers", "errors", "time_ratios", "reuse")


@dataclass(frozen=True)
class HeadPatterns(Configured):
    """A pattern for every layer and query head of one model; positions are never stored, they are found per prompt.

    Args:
        model: model_type, hidden_size, layers, num_heads, num_kv_heads, head_dim, and name_or_path for people.
        patterns: the different patterns in use.
        layers: per layer the number, in `patterns`, of every head's pattern; None for a dense layer.
        errors: per layer and head, ||O - O_dense||_1 / ||O_dense||_1 on the calibration prompts; None where dense.
        time_ratios: per pattern, cost over that of the reference candidate, mean of its heads.
        calibration: samples, tokens, device, date, objective, match (times or flops are alike).
        reuse: errors of layers that read what an earlier one chose, for `SparseReading`; None in older files.

    Raises:
        TypeError, ValueError: shapes that do not fit the model, numbers of patterns that do not exist.
    """

    model: Mapping[str, Any] = field(hash=False)
    patterns: tuple[Pattern, ...]
    layers: tuple[tuple[int, ...] | None, ...]
    errors: tuple[tuple[float, ...] | None, ...] = ()
    time_ratios: tuple[float, ...] = ()
    calibration: Mapping[str, Any] = field(default_factory=dict, hash=False)
    reuse: LayerReuse | None = None

    def __post_init__(self) -> None:
        missing = [name for name in FACTS if name not in self.model]
        if missing:
            raise ValueError(f"head patterns: facts about the model are missing: {', '.join(missing)}")
        for value in self.patterns:
            if not isinstance(value, Pattern):
                raise TypeError(f"head patterns: {value!r} of type {type(value).__name__} is not a pattern")
        depth, heads = self.model["layers"], self.model["num_heads"]
        if len(self.layers) != depth:
            raise ValueError(f"head patterns: {len(self.layers)} layers for a model of {depth}")
        for number, chosen in enumerate(self.layers):
            if chosen is not None and (
                len(chosen) != heads or not all(type(i) is int and 0 <= i < len(self.patterns) for i in chosen)
            ):
                raise ValueError(
                    f"head patterns: layer {number} must name one of {len(self.patterns)} patterns for each of {heads} "
                    f"heads, got {shown(chosen)}"
                )

    def groups(self, layer: int) -> list[tuple[Pattern, Tensor]]:
        """Return the patterns of a layer with the query heads Long[H] of each; empty where it is dense."""
        chosen = self.layers[layer]
        if chosen is None:
            return []
        numbers = torch.tensor(chosen)
        return [(self.patterns[i], (numbers == i).nonzero()[:, 0]) for i in sorted(set(chosen))]

    def check(self, model: Mapping[str, Any]) -> None:
        """Compare with the model of its use; `name_or_path` may differ, since copies have others.

        Raises:
            ValueError: naming everything that differs.
        """
        pairs = [(name, self.model[name], model.get(name)) for name in FACTS]
        differ = [f"{name} is {here!r}, theirs is {own!r}" for name, own, here in pairs if own != here]
        if differ:
            raise ValueError(f"these head patterns were found on another model: {'; '.join(differ)}. Search anew")

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON-ready dict that `from_dict` reads."""
        return {
            "schema": SCHEMA,
            "model": dict(self.model),
            "calibration": dict(self.calibration),
            "patterns": [methods.to_dict(p) for p in self.patterns],
            "layers": [None if own is None else list(own) for own in self.layers],
            "errors": [None if own is None else list(own) for own in self.errors],
            "time_ratios": list(self.time_ratios),
            "reuse": None if self.reuse is None else self.reuse.to_dict(),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> HeadPatterns:
        """Make head patterns from what `to_dict` returned.

        Raises:
            TypeError, ValueError: no dict, another schema, unknown or missing keys, values that do not fit.
        """
        if not isinstance(data, Mapping):
            raise TypeError(f"head patterns must be a dict, got {shown(data)} of type {type(data).__name__}")
        check_depth(data)
        if data.get("schema") != SCHEMA:
            raise ValueError(f"head patterns must have 'schema': {SCHEMA}, got {shown(data.get('schema'))}")
        data = {"reuse": None, **data}
        if set(data) != set(KEYS):
            raise ValueError(
                f"head patterns: unknown keys {sorted(set(data) - set(KEYS))}, missing keys "
                f"{sorted(set(KEYS) - set(data))}"
            )
        for key in ("patterns", "layers", "errors", "time_ratios"):
            if not listed(data[key]):
                raise ValueError(f"head patterns: {key} must be a list, got {shown(data[key])}")
        for key in ("layers", "errors"):
            for number, own in enumerate(data[key]):
                if own is not None and not listed(own):
                    raise ValueError(f"head patterns: {key} of layer {number} must be a list or null, got {shown(own)}")
        tables = {key: tuple(None if own is None else tuple(own) for own in data[key]) for key in ("layers", "errors")}
        patterns: tuple[Any, ...] = tuple(methods.build(entry) for entry in data["patterns"])
        ratios, calibration = tuple(data["time_ratios"]), data["calibration"]
        reuse = None if data["reuse"] is None else LayerReuse.from_dict(data["reuse"])
        return cls(data["model"], patterns, time_ratios=ratios, calibration=calibration, reuse=reuse, **tables)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write a JSON file; return its path."""
        file = Path(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n", encoding="utf-8")
        return file

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> HeadPatterns:
        """Read a file written by `save`, or a profile of `vlmopt calibrate` that holds head patterns.

        Raises:
            ValueError: the file cannot be read, or holds no valid head patterns.
        """
        try:
            data = parse(check_file(path, "file of head patterns").read_text(encoding="utf-8"))
            if isinstance(data, dict) and "prefill" in data:
                data = data["prefill"]
                if data is None:
                    raise ValueError("this profile holds none; add them with `vlmopt search-patterns --into`")
            return cls.from_dict(data)
        except (OSError, TypeError, ValueError) as error:
            raise ValueError(f"{path} cannot be read as head patterns: {error}") from error


def listed(value: Any) -> bool:
    """Return whether a value is a list, as JSON or Python have it."""
    return isinstance(value, Sequence) and not isinstance(value, str)

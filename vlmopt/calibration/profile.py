"""The profile file: everything that was measured on one model, in one JSON document."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pruning import Debias, ScoreSelector
from pruning.profile import DebiasProfile

from ..policy import Policy
from ..version import __version__

FORMAT = 1
KEYS = ("format", "vlmopt", "model", "data", "debias")


@dataclass(frozen=True)
class Profile:
    """What `vlmopt calibrate` found.

    Args:
        model: facts about the model (model_type, hidden_size, layers, name_or_path).
        data: what was shown to it, in words. debias: positional trends of attention scores.
    """

    model: Mapping[str, Any]
    data: str
    debias: tuple[DebiasProfile, ...] = ()

    def trend(self, host: ScoreSelector, axes: str = "raster") -> DebiasProfile:
        """The trend of a host's scores at its first layer.

        Raises:
            ValueError: it was not measured; the message lists what was.
        """
        first = host.stages[0]
        for profile in self.debias:
            if (profile.host, profile.layer, profile.axes) == (first.name, first.layer, axes):
                return profile
        have = ", ".join(f"{p.host} before layer {p.layer} ({p.axes})" for p in self.debias) or "nothing"
        raise ValueError(
            f"the trend of {first.name} before layer {first.layer} ({axes}) is not in this profile, only {have}. "
            f"Measure it: vlmopt calibrate --host {first.name}:{first.layer}"
        )

    def apply(self, policy: Policy) -> Policy:
        """The policy with every host that has a trend debiased by what was measured; the rest is unchanged."""
        prune = [
            Debias(method, fit="offline", profile=self.trend(method))
            if isinstance(method, ScoreSelector) and method.trend
            else method
            for method in policy.prune
        ]
        return Policy(prune, policy.attention, policy.prefill, policy.seed)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "format": FORMAT,
            "vlmopt": __version__,
            "model": dict(self.model),
            "data": self.data,
            "debias": [profile.to_dict() for profile in self.debias],
        }

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the file; returns its path."""
        file = Path(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")
        return file

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Profile:
        """Read a file written by `save`.

        Raises:
            ValueError: the file cannot be read, or is no profile of this format.
        """
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"{path} cannot be read as a profile: {error}") from error
        if not isinstance(data, dict) or data.get("format") != FORMAT or set(data) != set(KEYS):
            raise ValueError(
                f"{path} is no profile of format {FORMAT} with the keys {', '.join(KEYS)}; "
                "write one with `vlmopt calibrate`"
            )
        try:
            return cls(data["model"], data["data"], tuple(DebiasProfile.from_dict(entry) for entry in data["debias"]))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: {error}") from error

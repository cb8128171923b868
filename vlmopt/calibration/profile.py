"""The profile file: everything that was measured on one model, in one JSON document."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vlmopt.attention_fix import (
    AdaptiveGeneratedText,
    Correction,
    HeadProfile,
    IATProfile,
    SinkDiagnosis,
    SinkProfile,
    VisualSink,
)
from vlmopt.core import Configured, parse
from vlmopt.pruning import Debias, ScoreSelector
from vlmopt.pruning.profile import DebiasProfile

from ..paths import check_file
from ..policy import Policy
from ..version import __version__

FORMAT = 3
KEYS = {  # by format
    1: ("format", "vlmopt", "model", "data", "debias"),
    2: ("format", "vlmopt", "model", "data", "debias", "sinks", "heads", "prefill"),
    3: ("format", "vlmopt", "model", "data", "debias", "sinks", "heads", "prefill", "iat"),
}


@dataclass(frozen=True)
class Profile(Configured):
    """What `vlmopt calibrate` found.

    Args:
        model: facts about the model (model_type, hidden_size, layers, name_or_path).
        data: what was shown to it, in words. debias: positional trends of attention scores.
        sinks: hidden dimensions of its attention sinks, or that it has none; None: not measured.
        heads: how much each head looks at images. prefill: which pattern suits each head, JSON-ready.
        iat: attention to generated text before words for objects.
    """

    model: Mapping[str, Any]
    data: str
    debias: tuple[DebiasProfile, ...] = ()
    sinks: SinkProfile | None = None
    heads: HeadProfile | None = None
    prefill: Mapping[str, Any] | None = None
    iat: IATProfile | None = None

    def trend(self, host: ScoreSelector, axes: str = "raster") -> DebiasProfile:
        """Return the trend of a host's scores at its first layer.

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
        """Return the policy with what was measured filled in; the rest is unchanged.

        Every host that has a trend is debiased (unless no trend was measured), `visual_sink` and `sink_diagnosis`
        without dims or a profile get the measured ones; `adaptive_generated_text` without one gets "iat".
        """
        prune = [
            Debias(method, fit="offline", profile=self.trend(method))
            if isinstance(method, ScoreSelector) and method.trend and self.debias
            else method
            for method in policy.prune
        ]
        return replace(policy, prune=prune, attention=[self.filled(method) for method in policy.attention])

    def filled(self, method: Correction) -> Correction:
        """Return a correction with what was measured, where it lacks it; a tau of its own stays."""
        if isinstance(method, AdaptiveGeneratedText) and method.profile is None:
            return replace(method, profile=self.iat)
        if not isinstance(method, (VisualSink, SinkDiagnosis)) or method.dims or method.profile is not None:
            return method
        if self.sinks is None:
            return method
        return replace(method, profile=replace(self.sinks, tau=method.tau or self.sinks.tau), tau=None)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dict, in the lowest format that holds it, for earlier versions."""
        iat = {} if self.iat is None else {"iat": self.iat.to_dict()}
        return {
            "format": FORMAT if iat else FORMAT - 1,
            "vlmopt": __version__,
            "model": dict(self.model),
            "data": self.data,
            "debias": [profile.to_dict() for profile in self.debias],
            "sinks": None if self.sinks is None else self.sinks.to_dict(),
            "heads": None if self.heads is None else self.heads.to_dict(),
            "prefill": None if self.prefill is None else dict(self.prefill),
            **iat,
        }

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the file; return its path."""
        file = Path(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n", encoding="utf-8")
        return file

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Profile:
        """Read a file written by `save`.

        Raises:
            ValueError: the file cannot be read, or is not a profile of this format or an earlier one.
        """
        try:
            data = parse(check_file(path, "profile").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"{path} cannot be read as a profile: {error}") from error
        version = data.get("format") if isinstance(data, dict) else None
        if not isinstance(version, int) or set(data) != set(KEYS.get(version, ())):
            raise ValueError(
                f"{path} is not a profile of format {FORMAT} with the keys {', '.join(KEYS[FORMAT])}; "
                "write one with `vlmopt calibrate`"
            )
        sinks, heads, iat = (data.get(name) for name in ("sinks", "heads", "iat"))
        try:
            return cls(
                model=data["model"],
                data=data["data"],
                debias=tuple(DebiasProfile.from_dict(entry) for entry in data["debias"]),
                sinks=None if sinks is None else SinkProfile.from_dict(sinks),
                heads=None if heads is None else HeadProfile.from_dict(heads),
                prefill=data.get("prefill"),
                iat=None if iat is None else IATProfile.from_dict(iat),
            )
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: {error}") from error

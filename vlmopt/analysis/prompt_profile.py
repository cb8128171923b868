"""Find what a calibration would say after one prompt: how much each head looks at the image, and where sinks are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from vlmopt.attention_fix import HeadProfile, VisualSink

from ..calibration import Calibration
from ..diagnose import SinkReport, diagnose_sinks
from ..policy import Policy
from .attention_masses import KINDS, attention_masses

__all__ = ["KINDS", "HeadProfile", "SinkLook", "head_profile", "profile_in", "sink_look"]

Progress = Callable[[float, str], None]


@dataclass(frozen=True)
class SinkLook:
    """Sinks of one prompt, where its attention goes (`attention_masses`), and why nothing counts as a visual sink."""

    sinks: SinkReport
    masses: list[dict[str, Any]]
    reason: str | None


def head_profile(model: Any, inputs: Mapping[str, Any], progress: Progress | None = None) -> HeadProfile:
    """Measure how much each head looks at the image of one prompt, in a few passes of the dense model.

    Args:
        model: a loaded vision-language model; it is given back as it came. inputs: of `model(**inputs)`, batch 1.
        progress: told (share done, what comes next); what it raises ends the work.

    Raises:
        ValueError: no visual tokens, or attention of no layer can be read.
    """
    told = progress or nothing
    calibration = Calibration(model, (), ("heads",))
    told(0.1, "Looking for sinks")
    calibration.look(inputs)
    told(0.5, "Reading the heads, with the image and without")
    calibration.add(inputs)
    return calibration.head_profile(str(model.config.name_or_path))


def profile_in(policy: Policy) -> HeadProfile | None:
    """Return the head profile that a correction of the policy carries; None without one."""
    profiles = (getattr(correction, "profile", None) for correction in policy.attention)
    return next((profile for profile in profiles if isinstance(profile, HeadProfile)), None)


def sink_look(
    model: Any,
    inputs: Mapping[str, Any],
    policy: Policy,
    *,
    tokenizer: Any = None,
    progress: Progress | None = None,
) -> SinkLook:
    """Find sinks by the settings of the policy's `visual_sink`; without one, by the dimensions this prompt shows.

    Args: as for `head_profile` and `diagnose_sinks`.

    Raises:
        ValueError: no visual tokens, attention of no layer can be read, or a `visual_sink` that does not fit the model.
    """
    told = progress or nothing
    own = next((c for c in policy.attention if isinstance(c, VisualSink)), None)
    if own is None:
        told(0.1, "Looking for sink dimensions")
        calibration = Calibration(model, (), ("sinks",))
        calibration.look(inputs)
        own = VisualSink(profile=calibration.sink_profile(str(model.config.name_or_path)))
    told(0.4, "Following every token through the layers")
    sinks = diagnose_sinks(model, inputs, tokenizer=tokenizer, profile=own.profile, dims=own.dims, tau=own.tau)
    told(0.7, "Adding up attention")
    masses = attention_masses(model, inputs, policy, sinks=own)
    return SinkLook(sinks, masses, None if own.profile is None else own.profile.nothing)


def nothing(done: float, text: str) -> None:
    """Ignore what it is told: the default `progress`."""

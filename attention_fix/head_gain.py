"""Strengthen heads that were measured to look at images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor

from vlmopt.core import setting

from .base import HeadCorrection, register
from .measured import OnDevice, read_profile
from .profile import CRITERIA, HeadProfile


@register("head_gain")
@dataclass(frozen=True, kw_only=True)
class HeadGain(HeadCorrection):
    """Multiply head outputs by 1 + (strength - 1) kappa, kappa in 0..1 the measured visual sensitivity of the head.

    Our own version of the modulation of heads that Fixing Imbalanced Attention to Mitigate In-Context Hallucination of
    Large Vision-Language Model (arXiv 2501.12206) announces but does not release. kappa is 0 for heads below the median
    and 1 from the 90th percentile on. It is the same for every prompt, so it needs no pass of its own.
    """

    reads = "nothing at run time: heads were measured beforehand"

    layers: str = setting("2:", "Decoder layers, as indices and slices with a comma between.", "str")
    strength: float = setting(1.5, "Factor of the most sensitive heads.", "float", above=0, max=4)
    criterion: str = setting(
        "visual_mass",
        "Which measured number is kappa: attention to visual keys, the same without visual sinks, or how far the "
        "output moves when images are left out.",
        "str",
        choices=CRITERIA,
    )
    profile: HeadProfile = field(metadata={"help": "What was measured on this model, or its dict form."})

    def __post_init__(self) -> None:
        super().__post_init__()
        read_profile(self, "profile", HeadProfile, required=True)

    @property
    def is_identity(self) -> bool:
        return self.strength == 1

    @property
    def source(self) -> str | None:
        return self.profile.source

    def check_model(self, model: Mapping[str, Any]) -> None:
        self.profile.check(model)

    @cached_property
    def kappa(self) -> OnDevice:
        """fp32 [layers, heads]."""
        return OnDevice(self.profile.gain_map(self.criterion))

    def gain(self, heads: Tensor, text_only: Tensor | None, layer: int) -> Tensor:
        kappa = self.kappa[heads.device][layer]
        return (1 + (self.strength - 1) * kappa).expand(heads.shape[:2])

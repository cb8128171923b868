"""AdaIAT: raise attention to the model's own text where it is as low as it was before invented objects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from vlmopt.core import setting

from .base import RowCorrection, RowView, register
from .boost import TEXT_BOOST
from .iat_profile import IATProfile
from .measured import OnDevice, read_profile
from .watchdog import Watched


@register("adaptive_generated_text")
@dataclass(frozen=True, kw_only=True)
class AdaptiveGeneratedText(Watched, RowCorrection):
    """Multiply weights of generated keys by 1 + alpha D[layer, head] where a layer attends to them too little (AdaIAT).

    AdaIAT: Adaptively Increasing Attention to Generated Text to Alleviate Hallucinations in LVLM (arXiv 2603.04908).
    D is how much more a head looks at generated text before real than before hallucinated words; the layer attends
    too little if the sum over heads of the mean weight of a generated key is below hallucinated + beta (real -
    hallucinated). Rows still sum to 1. A factor that a negative D would turn negative is 0.
    """

    stage: ClassVar[str] = "weights"
    rows: ClassVar[str] = "last"
    group: ClassVar[str] = TEXT_BOOST

    layers: str = setting("16%:56%", "Decoder layers, as indices and slices; the paper's are 5..17 of 32.", "str")
    alpha: float = setting(6.0, "Strength, as a multiple of what was measured per head.", "float", min=0, max=20)
    beta: float = setting(
        0.5,
        "Attention below which a layer is corrected: 0: that before hallucinated words; 1: that before real ones.",
        "float",
        min=0,
        max=1,
    )
    profile: IATProfile | None = field(
        default=None, metadata={"help": "What was measured on this model, or its dict form."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        read_profile(self, "profile", IATProfile)

    @property
    def is_identity(self) -> bool:
        return self.alpha == 0

    @property
    def source(self) -> str | None:
        return None if self.profile is None else self.profile.source

    def check_model(self, model: Mapping[str, Any]) -> None:
        if self.profile is not None:
            self.profile.check(model)
        elif not self.is_identity:
            raise ValueError(self.unmeasured(repr(model.get("name_or_path") or dict(model))))

    def unmeasured(self, model: str) -> str:
        """Say what is missing without a profile."""
        return (
            f"{self.name}: how {model} looks at its own text is not known; "
            "measure it with `vlmopt calibrate --only iat` and give its profile"
        )

    @property
    def measured(self) -> IATProfile:
        """The profile; raises `ValueError` without one."""
        if self.profile is None:
            raise ValueError(self.unmeasured("the model"))
        return self.profile

    @cached_property
    def factors(self) -> OnDevice:
        """fp32 [layers, heads]: the factor of the weights of generated keys, before rows are normalised."""
        return OnDevice((1 + self.alpha * (torch.tensor(self.measured.ratios, dtype=torch.float32) - 1)).clamp(min=0))

    def edit(self, values: Tensor, view: RowView) -> tuple[Tensor, Tensor]:
        keys = view.sees(view.generated)
        count = keys.sum(-1)  # [B, 1 or H, R]
        mass = (values * keys).sum(-1)  # [B, H, R]
        attended = (mass / count.clamp(min=1)).sum(1, keepdim=True)
        factor = self.factors[values.device][view.layer, :, None]  # [H, 1]
        total = 1 + (factor - 1) * mass  # sum of the row; 0 if it sees nothing else and the factor is 0
        low = attended < self.measured.threshold(view.layer, self.beta)
        edited = low & (count > 0) & (factor != 1) & (total > 0)
        return torch.where(keys, values * factor[..., None], values) / total[..., None], edited

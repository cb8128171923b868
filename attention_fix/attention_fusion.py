"""VAF: make text in the middle layers attend more to the images and less to the system prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vlmopt.core import setting

from .base import RowCorrection, RowView, no_rows, register
from .boost import IMAGE_BOOST
from .watchdog import Watched


@register("attention_fusion")
@dataclass(frozen=True, kw_only=True)
class AttentionFusion(Watched, RowCorrection):
    """Scale logits in text rows: (1 + enhance) z on visual keys, (1 - suppress) z on the system prompt (VAF).

    ClearSight: Visual Signal Enhancement for Object Hallucination Mitigation in Multimodal Large Language Models (arXiv
    2503.13107). As published a negative logit moves the wrong way: visual keys with z < 0 lose attention.
    """

    stage: ClassVar[str] = "logits"
    rows: ClassVar[str] = "text"
    group: ClassVar[str] = IMAGE_BOOST

    layers: str = setting("28%:47%", "Decoder layers, as indices and slices; the paper's are 9..14 of 32.", "str")
    enhance: float = setting(0.15, "How much logits of visual keys grow, as a fraction.", "float", min=0, max=1)
    suppress: float = setting(
        0.05, "How much logits of the system prompt shrink, as a fraction.", "float", min=0, max=1
    )
    sign_safe: bool = setting(
        False, "z + enhance |z| and z - suppress |z|, which mean the same for either sign of z.", "bool"
    )

    @property
    def is_identity(self) -> bool:
        return self.enhance == 0 == self.suppress

    def edit(self, values: Tensor, view: RowView) -> tuple[Tensor, Tensor]:
        if self.is_identity:
            return values, no_rows(values)
        size = values.abs() if self.sign_safe else values
        image, system = (view.indicator(keys, values.dtype) for keys in (view.image, view.system))
        edited = view.sees_any(view.image).expand(values.shape[:3])  # without images the system prompt is left alone
        values = torch.addcmul(values, size, image, value=self.enhance)
        return torch.addcmul(values, size, system, value=-self.suppress), edited

"""What boosts of attention logits have in common: z + alpha |z| on chosen keys."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from .base import RowCorrection, RowView, no_rows
from .guidance import Guided
from .measured import OnDevice, read_profile
from .profile import HeadProfile
from .watchdog import Watched

IMAGE_BOOST = "image boost"
TEXT_BOOST = "text boost"


@dataclass(frozen=True, kw_only=True)
class Boost(Watched, Guided, RowCorrection):
    """Base of boosts of visual keys, with optional guidance, in rows that predict a token."""

    stage: ClassVar[str] = "logits"
    rows: ClassVar[str] = "last"
    group: ClassVar[str] = IMAGE_BOOST

    head_gain: HeadProfile | None = field(
        default=None,
        metadata={
            "help": "A measured profile of heads, or its dict form: heads that look at images least get no boost, "
            "those that look most all of it. Our own extension; without it all heads are alike, as in the paper."
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        read_profile(self, "head_gain", HeadProfile)

    @property
    @abstractmethod
    def boosts(self) -> bool:
        """True if these settings boost any key."""

    @property
    def is_identity(self) -> bool:
        return not self.boosts and self.gamma == 1

    @property
    def source(self) -> str | None:
        return None if self.head_gain is None else self.head_gain.source

    def check_model(self, model: Mapping[str, Any]) -> None:
        if self.head_gain is not None:
            self.head_gain.check(model)

    @cached_property
    def kappa(self) -> OnDevice | None:
        """fp32 [layers, heads] in 0..1, the share of the boost that each head gets; None: all of it."""
        return None if self.head_gain is None else OnDevice(self.head_gain.gain_map())

    def per_head(self, strength: float, values: Tensor, layer: int) -> float | Tensor:
        """Return the strength in one layer: one number, or fp32 [H] on the device of `values`."""
        return strength if self.kappa is None or strength == 0 else strength * self.kappa[values.device][layer]


def boosted(logits: Tensor, alpha: float | Tensor, view: RowView, keys: Tensor) -> tuple[Tensor, Tensor]:
    """Return z + alpha |z| on `keys` that a row sees; a negative z moves towards 0, and beyond it if alpha > 1.

    Args:
        logits: [B, H, R, K], scaled and masked. alpha: one number, or [H], one per head.
        view: what is known of the rows. keys: Bool[B, K].

    Returns:
        [B, H, R, K], and Bool[B, H, R]: rows that see one of the keys, in heads whose alpha is not 0.
    """
    if not isinstance(alpha, Tensor) and alpha == 0:
        return logits, no_rows(logits)
    chosen, changed = view.indicator(keys, logits.dtype), view.sees_any(keys).expand(logits.shape[:3])
    if not isinstance(alpha, Tensor):
        return torch.addcmul(logits, logits.abs(), chosen, value=alpha), changed
    strength = chosen * alpha[:, None, None].to(logits.dtype)
    return torch.addcmul(logits, logits.abs(), strength), changed & (alpha != 0)[:, None]

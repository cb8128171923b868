"""VHR: strengthen heads whose output depends on the image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from vlmopt.core import Signal, setting

from .base import HeadCorrection, TextOnly, register
from .measured import OnDevice, read_profile
from .profile import HeadProfile


@register("vision_heads")
@dataclass(frozen=True, kw_only=True)
class VisionHeads(HeadCorrection):
    """Multiply the outputs of the more image-dependent half of the heads by `strength` (VHR).

    Cracking the Code of Hallucination in LVLMs with Vision-aware Head Divergence (arXiv 2412.13949). A head's
    divergence (VHD) is the distance between its outputs with and without the images, in the last row of the prompt; the
    choice then holds for the whole answer. Where the paper is silent: the text-only stream is not strengthened, the
    standard deviation is the unbiased one, and a head that equals the lower median is left alone. Its authors tested it
    on 7B models without grouped queries only.

    Raises:
        ValueError: mode="static" without a profile, or a profile in another mode.
    """

    reads = "head outputs with and without images"

    layers: str = setting(
        "1,-44%:", "Decoder layers, as indices and slices; the paper's are 1 and the last 14 of 32.", "str"
    )
    strength: float = setting(
        1.5, "Factor of the chosen heads; the paper's is 2, for LLaVA-1.5; 4 breaks the text.", "float", above=0, max=4
    )
    outliers: bool = setting(
        True,
        "Leave out heads that diverge by more than a standard deviation above the mean and are as active without "
        "images: they react to the missing image, not to the image.",
        "bool",
    )
    mode: str = setting(
        "text_first",
        "text_first: the prompt runs once without images, and heads are chosen for it; static: heads that a profile "
        "names, for every prompt the same, which the paper finds weaker.",
        "str",
        choices=("text_first", "static"),
    )
    profile: HeadProfile | None = field(
        default=None, metadata={"help": "static: the measured mean divergence of heads, or its dict form."}
    )
    trace: bool = setting(
        False,
        "Report the divergence of every generated token, which is low before hallucinated words; a second stream "
        "without images doubles decoding.",
        "bool",
    )
    trace_heads: int = setting(4, "Heads per layer that the trace sums up, the most divergent ones.", "int", min=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        read_profile(self, "profile", HeadProfile)
        if (self.profile is not None) != (self.mode == "static"):
            raise ValueError(f"{self.name}: mode='static' needs a profile, mode='text_first' has no use for one")

    @property
    def needs(self) -> frozenset[Signal]:
        return frozenset({TextOnly()}) if self.mode == "text_first" else frozenset()

    @property
    def is_identity(self) -> bool:
        return self.strength == 1 and not self.trace

    @property
    def source(self) -> str | None:
        return None if self.profile is None else self.profile.source

    def check_model(self, model: Mapping[str, Any]) -> None:
        if self.profile is not None:
            self.profile.check(model)

    @cached_property
    def chosen(self) -> OnDevice:
        """Bool[layers, heads] that the profile names."""
        if self.profile is None:
            raise ValueError(f"{self.name}: only a profile names heads beforehand; use mode='static' with one")
        return OnDevice(above_median(torch.tensor(self.profile.divergence, dtype=torch.float32)))

    def gain(self, heads: Tensor, text_only: Tensor | None, layer: int) -> Tensor:
        if self.mode == "static":
            selected = self.chosen[heads.device][layer].expand(heads.shape[:2])
        elif text_only is None:
            raise ValueError(f"{self.name}: mode='text_first' compares with heads without images, and none are given")
        else:
            activity = text_only.float().square().sum(-1)
            selected = select_heads(head_divergence(heads, text_only), activity, self.outliers)
        return torch.ones(selected.shape, device=heads.device, dtype=torch.float32).masked_fill(selected, self.strength)


def head_divergence(heads: Tensor, text_only: Tensor) -> Tensor:
    """Return VHD: the Euclidean distance of head outputs [..., D] with and without images, in fp32."""
    distance: Tensor = torch.linalg.vector_norm(heads.float() - text_only.float(), dim=-1)
    return distance


def select_heads(divergence: Tensor, activity: Tensor, outliers: bool = True) -> Tensor:
    """Return the heads of one layer that are to be strengthened: divergence above the lower median.

    Args:
        divergence: fp32 [B, H], VHD. activity: fp32 [B, H], squared norm of the output without images.
        outliers: first set divergence to 0 where it and activity exceed mean + unbiased standard deviation.

    Returns:
        Bool[B, H]; floor(H / 2) heads if all values differ, none if they are all equal.
    """
    if outliers:
        divergence = divergence.masked_fill(extreme(divergence) & extreme(activity), 0.0)
    return above_median(divergence)


def above_median(values: Tensor) -> Tensor:
    """Return Bool[..., H]: strictly above the lower median of the last axis."""
    middle = (values.shape[-1] - 1) // 2
    return values > values.sort(-1).values[..., middle, None]  # `median` along an axis is not deterministic on GPUs


def extreme(values: Tensor) -> Tensor:
    """Return Bool[B, H]: above mean + unbiased standard deviation over heads; never with a single head."""
    away = values - values.mean(-1, keepdim=True)
    variance = away.square().sum(-1, keepdim=True) / max(values.shape[-1] - 1, 1)  # `std` warns of a single head
    return away > variance.sqrt()


def token_divergence(divergence: Sequence[Tensor], top_k: int) -> Tensor:
    """Return T-VHD [B]: the sum over layers of the `top_k` largest VHD of each, from one [B, H] per layer."""
    return torch.stack([layer.topk(min(top_k, layer.shape[-1])).values.sum(-1) for layer in divergence]).sum(0)

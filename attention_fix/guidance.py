"""Classifier-free guidance: move logits away from what the language model says without the images."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vlmopt.core import setting

from .contrast import contrast


@dataclass(frozen=True, kw_only=True)
class Guided:
    """Settings of corrections whose papers add guidance; at 1.0 no second stream runs."""

    gamma: float = setting(
        1.0,
        "Guidance away from the answer without images, 1: off, 1.1 in the papers; a second stream doubles decoding.",
        "float",
        min=1,
        max=3,
    )
    cutoff: float = setting(
        0.1, "With guidance: tokens below this fraction of the highest probability are excluded.", "float", min=0, max=1
    )


def guide(with_image: Tensor, without: Tensor, gamma: float, cutoff: float = 0.1) -> Tensor:
    """Return gamma (s - u) + u, where s and u are log-probabilities with and without the images.

    Paying More Attention to Image (arXiv 2407.21771): `contrast` with alpha = gamma - 1. Tokens with
    s < ln(cutoff) + max s become -inf; the likeliest with images always stays.

    Args:
        with_image: logits [..., V], -inf for tokens that are excluded already. without: finite logits [..., V].
        gamma: >= 1; 1 gives s itself, with no further token excluded. cutoff: 0..1; 0 excludes nothing.

    Returns:
        fp32 [..., V], not normalised.
    """
    s = with_image.float().log_softmax(-1)
    return s if gamma == 1 else contrast(s, without.float().log_softmax(-1), gamma - 1, cutoff)

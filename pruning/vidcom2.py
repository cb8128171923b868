"""VidCom2: give frames that stand out more tokens, and keep the tokens that stand out."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vlmopt.core.settings import setting

from .base import Selector, register, top
from .budget import apportion, segments
from .signals import Signal, VisualEmbeds
from .tokens import Selection, VisualTokens
from .uniqueness import calm, typical, weights


@register("vidcom2")
@dataclass(frozen=True, kw_only=True)
class VidCom2(Selector):
    """Keep cells least typical of their frame and of the whole video; a frame's share grows with how untypical it is.

    Video Compression Commander: Plug-and-Play Inference Acceleration for Video Large Language Models (arXiv
    2505.14454): typicality is a sum of Gaussians around the mean of the video and that of the frame, on the half of the
    channels that varies least. The temperature of the paper makes the softmax over frames nearly a choice of one, which
    gets up to 2 - 1 / T times its part, all others 1 - 1 / T. An image is one frame, whose least typical cells stay.
    """

    reads = "change between frames"

    layer: int = setting(0, "Always 0: tokens leave before the LLM.", "int", min=0, max=0)
    segment: str = setting("image", "Always image: the method itself shares among frames.", "str", choices=("image",))
    paper_compat: bool = setting(
        False, "As released: the count of every frame is rounded by itself and at least 1, so the total drifts.", "bool"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "adaptive", self.paper_compat)

    @property
    def needs(self) -> frozenset[Signal]:
        return frozenset({VisualEmbeds()})

    def pick(self, tokens: VisualTokens, k: int) -> Selection:
        rows = calm(tokens.signals[VisualEmbeds()])
        frames = segments(tokens, "frame", "proportional")
        whole = typical(rows, rows.mean(0))
        scores = torch.empty_like(whole)
        for index in frames:
            frame = rows[index]
            scores[index] = -(whole[index] + typical(frame, frame.mean(0)))
        shares = weights(whole, frames)
        sizes = [len(index) for index in frames]
        if self.paper_compat:
            ratio = k / len(tokens)
            counts = [min(max(round(ratio * share * n), 1), n) for share, n in zip(shares, sizes, strict=True)]
        else:
            counts = apportion([share * n for share, n in zip(shares, sizes, strict=True)], k, sizes, 1)
        keep = [index[top(scores[index], count)] for index, count in zip(frames, counts, strict=True)]
        return Selection(torch.cat(keep).sort().values, scores)

"""Find attention sinks, and the layers in which they last, by their likeness to the first token."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

ALIKE = 0.9  # |cosine| with the first token from which on a token counts as a sink
LONG = 0.55  # share of the layers from which on a sink is like the first token
BRIEF = 4  # layers up to which likeness is noise
MASSIVE = 5.0  # times the usual norm from which on the first token has massive activations
FALL = 0.1  # share of the first token's norm: a smaller loss does not end its massive activations


@dataclass(frozen=True, eq=False)
class SinkLives:
    """Sinks of B samples of N tokens in a model of L layers; positions are those of the stream that was shown."""

    cosine: Tensor  # fp32 [L, B, N] with the first token, 0 for padding
    first_token: Tensor  # Long[B]
    band: Tensor  # Long[B, 2]: first layer whose output has the first token's massive activations, first without
    start: Tensor  # Long[B, N]: first layer in which a token behind the first is like it, -1: none
    lifetime: Tensor  # Long[B, N]: number of such layers

    @property
    def primary(self) -> Tensor:
        """Bool[B, N]: alike for most of the depth."""
        return self.lifetime >= LONG * len(self.cosine)

    @property
    def secondary(self) -> Tensor:
        """Bool[B, N]: alike for some layers."""
        return (self.lifetime > BRIEF) & ~self.primary

    def levels(self, sample: int) -> dict[tuple[int, int], list[int]]:
        """Return positions of secondary sinks by (first layer, lifetime), in rising order."""
        table: dict[tuple[int, int], list[int]] = {}
        for place in self.secondary[sample].nonzero()[:, 0].tolist():
            level = int(self.start[sample, place]), int(self.lifetime[sample, place])
            table.setdefault(level, []).append(place)
        return dict(sorted(table.items()))


class SinkTrace:
    """Listen to the outputs of the decoder layers and keep two numbers of every token: cosine and norm.

    On the Existence and Behavior of Secondary Attention Sinks (arXiv 2512.22213). The first token is the one of the
    first `candidates` with the largest norm over all layers (with a chat template it need not be the very first).
    Limits are relative to the depth where the paper's code has constants.

    Args:
        valid: Bool[B, N], False for padding, on either side. candidates: 2, or 3 with a chat template.
    """

    def __init__(self, valid: Tensor, candidates: int = 2) -> None:
        self.valid = valid
        width = valid.shape[1]
        self.places = (valid.long().argmax(1, keepdim=True) + torch.arange(candidates, device=valid.device)) % width
        self.cosines: list[Tensor] = []  # fp32 [B, N, candidates]
        self.norms: list[Tensor] = []  # fp32 [B, N]

    def add(self, hidden: Tensor) -> None:
        """Take in the output [B, N, D] of the next decoder layer.

        Raises:
            ValueError: not the N tokens of `valid`.
        """
        if hidden.shape[:2] != self.valid.shape:
            raise ValueError(f"hidden {tuple(hidden.shape)} does not fit valid {tuple(self.valid.shape)}")
        hidden = hidden.float()
        norm = torch.linalg.vector_norm(hidden, dim=-1)
        unit = hidden / norm.clamp_min(torch.finfo(norm.dtype).tiny)[..., None]
        anchors = unit.gather(1, self.places[..., None].expand(-1, -1, hidden.shape[2]))
        self.cosines.append((unit @ anchors.mT).masked_fill(~self.valid[..., None], 0.0))
        self.norms.append(norm.masked_fill(~self.valid, 0.0))

    def lives(self) -> SinkLives:
        """Return what the layers so far show.

        Raises:
            ValueError: fewer than two layers.
        """
        depth = len(self.norms)
        if depth < 2:
            raise ValueError(f"{depth} layers were added; a rise of norms takes two at least")
        norms = torch.stack(self.norms)  # [L, B, N]
        chosen = norms.mean(0).gather(1, self.places).argmax(1, keepdim=True)  # of the candidates, [B, 1]
        first = self.places.gather(1, chosen)
        cosine = torch.stack([layer.gather(2, chosen[:, None].expand(-1, layer.shape[1], 1)) for layer in self.cosines])
        cosine = cosine[..., 0]
        begin, end = massive_band(norms.gather(2, first.expand(depth, -1, -1))[..., 0])
        layer = torch.arange(depth, device=norms.device)[:, None]
        place = torch.arange(norms.shape[2], device=norms.device)
        inside = (layer >= begin) & (layer < end)  # [L, B]
        alike = (cosine.abs() > ALIKE) & inside[..., None] & (place > first)
        lifetime = alike.sum(0)
        start = alike.long().argmax(0).masked_fill(lifetime == 0, -1)
        return SinkLives(cosine, first[:, 0], torch.stack([begin, end], 1), start, lifetime)


def like_first(hidden: Tensor, valid: Tensor, candidates: int = 3) -> Tensor:
    """Return Bool[N]: tokens behind the first one that are sinks at this one place, by their hidden states [N, D].

    They are like the first token, |cosine| > 0.9, while its norm is `MASSIVE` times the median of all tokens, or more.
    In a model, or at a layer, without such activations all may be alike for other reasons, and nothing is a sink.

    Args:
        valid: Bool[N], False for padding. candidates: places from the first valid one on; of them the largest norm.
    """
    hidden = hidden.float()
    norm: Tensor = torch.linalg.vector_norm(hidden, dim=-1)
    begin = valid.long().argmax()
    place = torch.arange(len(norm), device=norm.device)
    first = norm.masked_fill(~valid | (place < begin) | (place >= begin + candidates), -1.0).argmax()
    usual = norm.masked_fill(~valid, torch.nan).nanmedian()
    cosine = (hidden @ hidden[first]) / (norm * norm[first]).clamp_min(torch.finfo(norm.dtype).tiny)
    return (cosine.abs() > ALIKE) & valid & (place > first) & (norm[first] >= MASSIVE * usual)


def massive_band(norms: Tensor) -> tuple[Tensor, Tensor]:
    """Return layers [begin, end), Long[B] each, between the steepest rise and fall of norms fp32 [L, B].

    Without a clear fall the band reaches to the last layer.
    """
    steps = norms.diff(dim=0)
    begin = steps.argmax(0) + 1
    layer = torch.arange(len(steps), device=norms.device)[:, None]
    steps = steps.masked_fill(layer < begin, torch.inf)
    fall, place = steps.min(0)
    there = norms.gather(0, begin[None])[0]
    return begin, torch.where(fall <= -FALL * there, place + 1, len(norms))

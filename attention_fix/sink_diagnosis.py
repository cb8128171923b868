"""Report where attention sinks are: tokens like the first one, and tokens that stand out by VAR's rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vlmopt.core import setting

from .base import Diagnosis, Listening, register
from .secondary_sinks import ALIKE, SinkLives, SinkTrace
from .sink_settings import SinkSettings

CANDIDATES = 3  # for the first token: prompts come in chat templates
AGREE = 0.5  # where fewer of the visual sinks are like the first token, the dimensions are in doubt


@register("sink_diagnosis")
@dataclass(frozen=True, kw_only=True)
class SinkDiagnosis(SinkSettings, Diagnosis):
    """Change nothing; report primary and secondary sinks (like the first token) and visual sinks (VAR).

    On the Existence and Behavior of Secondary Attention Sinks (arXiv 2512.22213): tokens whose stream has |cosine| >
    0.9 with that of the first token, primary where that holds for most of the depth, secondary for more than 4 layers.
    Visual sinks are those of `visual_sink`, where dimensions are given, measured or published. The two rules share
    nothing, so that their overlap tells whether the dimensions are right.
    """

    reads = "residual stream"

    layers: str = setting("2:-1", "Decoder layers, as indices and slices, in which visual sinks are looked for.", "str")

    def listen(self, valid: Tensor) -> Listening:
        return SinkFindings(self, valid)


class SinkFindings:
    """What one prompt shows; a few numbers per token and layer."""

    def __init__(self, diagnosis: SinkDiagnosis, valid: Tensor) -> None:
        self.diagnosis, self.valid = diagnosis, valid
        self.trace = SinkTrace(valid, CANDIDATES)
        self.standing: list[Tensor] = []  # Bool[B, N] per layer: what VAR would call a sink in the layer behind it

    def add(self, hidden: Tensor) -> None:
        self.trace.add(hidden)
        if self.diagnosis.sink_dims:
            self.standing.append(self.diagnosis.sinks(hidden) & self.valid)

    def found(self, image: Tensor, names: Sequence[Mapping[int, str]]) -> list[dict[str, Any]]:
        lives = self.trace.lives()
        visual = self.visual(lives, image)
        return [self.sample(lives, b, None if visual is None else visual[:, b], name) for b, name in enumerate(names)]

    def visual(self, lives: SinkLives, image: Tensor) -> Tensor | None:
        """Return Bool[L, B, N]: visual sinks, by the layer behind which they stand out; None without dimensions."""
        if not self.standing:
            return None if self.diagnosis.profile is None else torch.zeros_like(lives.cosine, dtype=torch.bool)
        depth = len(lives.cosine)
        searched = self.diagnosis.at(depth)
        standing = torch.stack(self.standing)
        asked = torch.tensor([layer + 1 in searched for layer in range(depth)], device=standing.device)
        return standing & image.to(standing.device) & asked[:, None, None]

    def sample(self, lives: SinkLives, b: int, visual: Tensor | None, names: Mapping[int, str]) -> dict[str, Any]:
        first, (begin, end) = int(lives.first_token[b]), lives.band[b].tolist()
        kinds = {"primary": lives.primary[b], "secondary": lives.secondary[b]}
        layers = torch.zeros_like(lives.lifetime[b]) if visual is None else visual.sum(0)
        listed = kinds["primary"] | kinds["secondary"] | (layers > 0)
        tokens = [
            {
                "place": place,
                "what": names.get(place, "text"),
                "kind": next((kind for kind, those in kinds.items() if those[place]), None),
                "first_layer": int(lives.start[b, place]),
                "lifetime": int(lives.lifetime[b, place]),
                "visual_sink_layers": int(layers[place]),
            }
            for place in listed.nonzero()[:, 0].tolist()
        ]
        levels = [
            {"first_layer": layer, "lifetime": lifetime, "tokens": len(places)}
            for (layer, lifetime), places in lives.levels(b).items()
        ]
        out = {"first_token": first, "band": [begin, end], "tokens": tokens, "levels": levels}
        out["visual"] = None if visual is None else self.agreement(visual, lives.cosine[:, b].abs(), begin, end)
        return {"summary": summary(out), **out}

    def agreement(self, visual: Tensor, cosine: Tensor, begin: int, end: int) -> dict[str, Any]:
        """Compare the rules: visual sinks [L, N] by layer, and their |cosine| [L, N] to the first token in the band."""
        inside, likeness = visual[begin:end], cosine[begin:end]
        count = int(inside.sum())
        return {
            "dims": list(self.diagnosis.sink_dims),
            "per_layer": {str(layer + 1): int(n) for layer, n in enumerate(visual.sum(1).tolist()) if n},
            "tokens": int(visual.any(0).sum()),
            "overlap": float((likeness[inside] > ALIKE).float().mean()) if count else None,
            "cosine": float(likeness[inside].mean()) if count else None,
        }


def summary(found: Mapping[str, Any]) -> str:
    """Sum up a sample in one line."""
    kinds = [token["kind"] for token in found["tokens"]]
    begin, end = found["band"]
    text = (
        f"first token at {found['first_token']}, massive behind layers {begin} to {end - 1}; "
        f"{kinds.count('primary')} primary and {kinds.count('secondary')} secondary sinks"
    )
    visual = found["visual"]
    if visual is None:
        return text + "; visual sinks unknown: no dimensions are published, `vlmopt calibrate` measures them"
    if not visual["dims"]:
        return text + "; no visual sinks by measurement"
    text += f"; {visual['tokens']} visual sinks in {len(visual['per_layer'])} layers"
    if visual["overlap"] is None:
        return text
    text += f", {100 * visual['overlap']:.0f} % of them like the first token (mean |cosine| {visual['cosine']:.2f})"
    return text + (": the dimensions are in doubt" if visual["overlap"] < AGREE else "")

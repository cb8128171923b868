"""Record what prompts show of attention sinks: a few numbers per layer, and the tokens that stand out.

The residual stream is read where it enters a layer, attention where the layer corrects it; neither is changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vlmopt.attention_fix import Residual, RowCorrection, RowView, SinkProfile
from vlmopt.attention_fix.base import no_rows
from vlmopt.attention_fix.sink_scores import auto_tau
from vlmopt.core import Signal

from ..api import optimized
from ..checks import model_facts
from ..offload import device_of
from ..policy import Policy
from ..runtime.components.corrections.check import why_not
from ..runtime.structure import structure_of
from .sink_dims import Layer, Look, Values, sink_profile

PROMPTS, TEXTS = 16, 8  # prompts with images, in two halves of eight, and of their questions alone
VALUES = 16  # largest values of a token; at most 1 / 0.3125^2 = 10 can reach the threshold


class Eye:
    """Record one prompt; a layer is finished when the next begins, for rows come in pieces."""

    def __init__(self, layers: list[int]) -> None:
        self.layers = layers
        self.look: Look = []
        self.hidden: Tensor | None = None
        self.image: Tensor | None = None  # Long[n]
        self.received: Tensor = torch.empty(0)  # fp32 [K], summed over rows and heads
        self.rows = 0

    def see(self, hidden: Tensor) -> None:
        """Take in the stream [1, N, D] that enters the next layer."""
        self.finish()
        self.hidden = hidden[0].float()

    def attend(self, values: Tensor, view: RowView) -> None:
        """Take in some rows of the layer's attention [1, H, R, K]."""
        weights = values[0][:, view.rows[0]].float()
        if self.image is None:
            self.image, self.received = view.image[0].nonzero()[:, 0], weights.new_zeros(weights.shape[-1])
        self.received += weights.sum((0, 1))
        self.rows += weights.shape[0] * weights.shape[1]

    def finish(self) -> None:
        """Put what was seen of a layer into numbers."""
        if self.hidden is None:
            return
        x = self.hidden
        size, norm = x.abs(), torch.linalg.vector_norm(x, dim=-1)
        layer = Layer(
            layer=self.layers[len(self.look)],
            peak=float(size.max()),
            middle=float(size.median()),
            reach=float(norm.max() / norm.median().clamp_min(1e-12)),
            first=largest(relative(x[0])),
        )
        if self.image is not None and self.rows:
            received = (self.received / self.rows)[self.image]
            x, ratios = x[self.image], relative(x[self.image])
            found = ratios >= auto_tau(x.shape[-1])
            cosine = nn.functional.cosine_similarity(x, self.hidden[:1], dim=-1)
            layer.image, layer.received = len(x), float(received.sum())
            layer.standing = [
                (found[j].nonzero()[:, 0].tolist(), float(received[j]), float(cosine[j]))
                for j in found.any(-1).nonzero()[:, 0].tolist()
            ]
            layer.attended = largest(ratios[received.argmax()])
        self.look.append(layer)
        self.hidden, self.image, self.rows = None, None, 0


def relative(x: Tensor) -> Tensor:
    """Return |x_c| / rms(x) over the last axis."""
    return x.abs() / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()


def largest(ratios: Tensor) -> Values:
    top = ratios.topk(min(VALUES, len(ratios)))
    return list(zip(top.indices.tolist(), top.values.tolist(), strict=True))


@dataclass(frozen=True, kw_only=True)
class SinkListener(RowCorrection):
    """Hand residual streams and attention rows to an `Eye` and edit nothing."""

    name = "sink calibration"

    layers: str = "0:"
    eye: Eye

    @property
    def needs(self) -> frozenset[Signal]:
        return frozenset({Residual()})

    @property
    def is_identity(self) -> bool:
        return False

    def mark(self, hidden: Tensor) -> dict[str, Tensor]:
        self.eye.see(hidden)
        return {}

    def edit(self, values: Tensor, view: RowView) -> tuple[Tensor, Tensor]:
        self.eye.attend(values, view)
        return values, no_rows(values)


class SinkCollector:
    """Look at prompts for sinks; `state()` can be written to a file and given back to go on.

    Args:
        model: a loaded vision-language model. state: of an earlier collector.

    Raises:
        ValueError: attention of no layer can be read.
    """

    def __init__(self, model: nn.Module, state: Mapping[str, Any] | None = None) -> None:
        self.model, self.structure = model, structure_of(model)
        self.layers = readable_layers(model)
        state = state or {"pictures": [], "texts": [], "asked": []}
        self.images = [[Layer(**layer) for layer in look] for look in state["pictures"]]
        self.texts = [[Layer(**layer) for layer in look] for look in state["texts"]]
        self.asked: list[list[int]] = list(state["asked"])  # ids of the text-only prompts

    @property
    def done(self) -> int:
        return len(self.images)

    def add(self, inputs: Mapping[str, Any]) -> None:
        """Show one prompt, batch 1; it counts if it has images.

        The first different questions are also asked without images.
        """
        look = self.look(inputs)
        if not any(layer.image for layer in look):
            return
        self.images.append(look)
        between = sorted({*self.structure.visual_ids, *self.structure.delimiters})
        ids = inputs["input_ids"][0]
        text = ids[~torch.isin(ids, ids.new_tensor(between))]
        if len(text) and len(self.texts) < TEXTS and text.tolist() not in self.asked:
            self.asked.append(text.tolist())
            self.texts.append(self.look({"input_ids": text[None], "attention_mask": torch.ones_like(text)[None]}))

    @torch.inference_mode()
    def look(self, inputs: Mapping[str, Any]) -> Look:
        device = device_of(self.model)
        moved = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in inputs.items()}
        eye = Eye(self.layers)
        with optimized(self.model, Policy(attention=[SinkListener(eye=eye)])):
            self.model(**moved, use_cache=False)
        eye.finish()
        return eye.look

    def state(self) -> dict[str, Any]:
        """Return the state, JSON-ready."""
        looks = {"pictures": self.images, "texts": self.texts}
        return {name: [[asdict(layer) for layer in look] for look in those] for name, those in looks.items()} | {
            "asked": self.asked
        }

    def profile(self, name: str) -> SinkProfile:
        """Return what was found, and whether both halves of the images show the same.

        Args:
            name: what the model is called in the profile.
        """
        facts = model_facts(self.model, self.structure) | {"name_or_path": name}
        return sink_profile(facts, self.images, self.texts)


def readable_layers(model: nn.Module) -> list[int]:
    """Return the decoder layers whose attention can be read row by row.

    Raises:
        ValueError: none can.
    """
    reasons = [why_not(attention) for attention in structure_of(model).attentions]
    found = [layer for layer, reason in enumerate(reasons) if reason is None]
    if not found:
        why = "; ".join(sorted({str(reason) for reason in reasons}))
        raise ValueError(f"{type(model).__name__}: attention of no layer can be read: {why}")
    return found

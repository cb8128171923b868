"""A tiny LLaVA with attention sinks planted into it: massive activations that a layer writes and another takes away."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from tests.support import tiny
from tests.support.families import FAMILIES, Batch, Image

FAMILY = FAMILIES["llava"]
TEXT, SINK = 13, 11  # of `prompt`: text tokens, and the place of a visual one
DIMS, SIZE = (3, 17), 1e5
SHARED, KEY = 50, 7  # a dimension that all text has in common; one of a head's dimensions that hardly rotate


def prompt(seed: int) -> Batch:
    """BOS, 5 text tokens, 16 visual ones at 6..21, and a question of 7."""
    return FAMILY.inputs([[5, Image(0), 7]], seed=seed)


@dataclass
class Plan:
    """Which tokens get how much in which dimensions, and between which layers; without an image the first one only.

    What the block of layer 1 writes and that of layer 4 takes away enters layers 2, 3 and 4.
    """

    tokens: dict[int, tuple[int, ...]] = field(default_factory=lambda: {0: DIMS, SINK: DIMS})
    lives: dict[int, tuple[int, int]] = field(default_factory=dict)  # place -> layers that write and take away
    size: float = SIZE


class Massive(nn.Module):
    """A feed-forward block that also does what the plan says."""

    def __init__(self, block: nn.Module, layer: int, plan: Plan) -> None:
        super().__init__()
        self.block, self.layer, self.plan = block, layer, plan

    def forward(self, x: Tensor) -> Tensor:
        out = self.block(x).clone()
        for place, dims in self.plan.tokens.items():
            written, taken = self.plan.lives.get(place, (1, 4))
            sign = (self.layer == written) - (self.layer == taken)
            if sign and (place == 0 or x.shape[1] > TEXT):
                out[:, place, list(dims)] += sign * self.plan.size
        return out


def planted(plan: Plan | None = None, pull: float = 1.5, depth: int = 6) -> Any:
    """The model. `pull` is how strongly text is drawn to sinks; 0: not at all."""
    plan = plan or Plan()
    family = FAMILY if depth == 6 else replace(FAMILY, name=f"llava_{depth}", config=lambda: deep(depth))
    model: Any = copy.deepcopy(family.build("sdpa"))
    decoder = model.model.language_model
    with torch.no_grad():
        decoder.embed_tokens.weight[slice(*tiny.TEXT_IDS), SHARED] = 20.0
        for i, layer in enumerate(decoder.layers):
            attention = layer.self_attn
            attention.q_proj.weight[KEY :: attention.head_dim, SHARED] = pull
            for c in {c for dims in plan.tokens.values() for c in dims}:
                attention.k_proj.weight[KEY :: attention.head_dim, c] = pull
            layer.mlp = Massive(layer.mlp, i, plan)
    return model


def deep(depth: int) -> Any:
    config = tiny.llava()
    config.text_config.num_hidden_layers = depth
    return config

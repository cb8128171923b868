"""What the checkpoints share, what one of them has to say about itself, and a fast CPU attention for training."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn
from transformers import AttentionInterface, PreTrainedConfig, PreTrainedTokenizerFast

from vlmopt.synthetic import World
from vlmopt.synthetic.words import CELL, COORDINATES, LATTICE

from .vocabulary import embedding_table

HIDDEN, LAYERS, HEADS, FEED_FORWARD = 192, 6, 4, 512
TOWER_FEED_FORWARD = 384
MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073])
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711])


@dataclass(frozen=True)
class Pointing:
    """One attention head that is told to look, before an answer, at the object asked about."""

    layer: int
    head: int
    weight: float = 0.3


@dataclass(frozen=True)
class Architecture(ABC):
    """How a checkpoint differs from the others: its shape, its images, where its tokens stand, what they say.

    Attributes:
        sizes: image sizes drawn in training, with their frequencies.
        steps: optimizer steps of each stage.
        rates: learning rate of each stage.
        cooldowns: last fraction of each stage in which the rate falls to zero.
        square: cells a side of the square that images are padded to; 0 where they are not.
        places: whether a cell's token also says where the cell is, by a coordinate word for x and one for y.
        probed_layer: the decoder layer after which probes ask for places, None where they are not needed.
        pointing: the head that is told where to look, if any.
    """

    model_class: ClassVar[type[Any]]
    key_heads: ClassVar[int]

    sizes: Mapping[tuple[int, int], float]
    steps: Mapping[str, int]
    rates: Mapping[str, float]
    cooldowns: Mapping[str, float]
    square: int = 0
    places: bool = False
    probed_layer: int | None = None
    pointing: Pointing | None = None

    @abstractmethod
    def configuration(self, tokenizer: PreTrainedTokenizerFast) -> PreTrainedConfig:
        """Return the model's configuration."""

    @abstractmethod
    def visual(self, model: Any) -> nn.Module:
        """Return everything between the pixels and the language model."""

    @abstractmethod
    def see(self, model: Any, worlds: list[World]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return visual tokens [b, cells, d] of images of one size; and a summary of each [b, d], if there is one."""

    @abstractmethod
    def positions(self, kept: torch.Tensor, rows: int, columns: int) -> tuple[torch.Tensor, int]:
        """Return positions [axes, b, n] of the kept cells [b, n], and the first position after the whole image."""

    @abstractmethod
    def processor(self, tokenizer: PreTrainedTokenizerFast, chat_template: str) -> Any:
        """Return the stock processor to ship."""

    def build(self, tokenizer: PreTrainedTokenizerFast, seed: int) -> Any:
        """Build a fresh model with frozen word embeddings; heads first attend to tokens that share their words."""
        torch.manual_seed(seed)
        model = self.model_class._from_config(self.configuration(tokenizer), dtype=torch.float32)
        set_attention(model)
        with torch.no_grad():
            embeddings = model.get_input_embeddings().weight
            embeddings.copy_(embedding_table(tokenizer, HIDDEN, seed))
            for layer in model.model.language_model.layers:
                attend_to_likes(layer.self_attn, self.key_heads)
            self.prepare(model)
        embeddings.requires_grad_(False)
        return model

    def mask(self, mask: torch.Tensor) -> Any:
        """Return a ready additive mask [b, 1, s, s] in the form the language model takes it."""
        return mask

    def prepare(self, model: Any) -> None:  # noqa: B027
        """Set further initial values; nothing unless overridden."""

    def corner(self, rows: int, columns: int) -> tuple[int, int]:
        """Return row and column of the grid's cell where an image's first cell lies."""
        return ((self.square - rows) // 2, (self.square - columns) // 2) if self.square else (0, 0)

    def inside(self, rows: int, columns: int) -> torch.Tensor:
        """Return which cells of the grid an image fills, bool [cells]."""
        top, left = self.corner(rows, columns)
        grid = torch.zeros(self.square or rows, self.square or columns, dtype=torch.bool)
        grid[top : top + rows, left : left + columns] = True
        return grid.flatten()

    def slots(self, worlds: list[World]) -> torch.Tensor:
        """Return the words true of each cell [slots, b, rows, columns] of the grid; −2, unspecified, on padding."""
        slots = np.stack([world.cells for world in worlds], axis=1)
        rows, columns = slots.shape[2:]
        if self.places:
            y, x = np.mgrid[:rows, :columns].astype(slots.dtype) * (CELL // LATTICE)
            assert COORDINATES[0] == CELL // 2  # so that 0 stands for the centre of the first cell
            slots = np.concatenate([slots, np.broadcast_to(np.stack([x, y])[:, None], slots.shape)])
        if self.square:
            top, left = self.corner(rows, columns)
            padding = ((0, 0), (0, 0), (top, self.square - rows - top), (left, self.square - columns - left))
            slots = np.pad(slots, padding, constant_values=-2)
        return torch.from_numpy(slots).long()


def attend_to_likes(attention: Any, key_heads: int, spread: float = 0.04) -> None:
    """Initialise query and key weights nearly equal, so that tokens attend to what resembles them."""
    attention.k_proj.weight.normal_(std=spread)
    copies = attention.k_proj.weight.view(key_heads, 1, -1, HIDDEN).expand(-1, HEADS // key_heads, -1, -1)
    attention.q_proj.weight.copy_(copies.reshape(HIDDEN, HIDDEN))
    attention.q_proj.weight.add_(spread / 2 * torch.randn(HIDDEN, HIDDEN))


def pixel_values(worlds: list[World]) -> torch.Tensor:
    """Return normalised pixels [b, height, width, 3] as the stock image processors compute them."""
    pixels = torch.from_numpy(np.stack([np.asarray(world.image) for world in worlds])).float()
    return (pixels / 255 - MEAN) / STD


def set_attention(model: Any) -> None:
    """Have a model compute attention by `bmm_attention`."""
    AttentionInterface.register("training_bmm", bmm_attention)
    model.set_attn_implementation("training_bmm")


def bmm_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float = 1.0,
    **_kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Return plain attention; with bfloat16 matrix units it trains about twice as fast on CPU as the fused operator.

    query [b, h, n, d], key and value [b, kv, n, d], additive mask [b, 1, n, n] or None; returns [b, n, h, d]. A module
    with a `watcher` has it called with the weights [b, h, n, n].
    """
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    query, key = (query * scaling).to(value.dtype), key.to(value.dtype)
    scores = query @ key.transpose(-1, -2)
    if attention_mask is not None:
        scores = scores + attention_mask.to(scores.dtype)
    weights = scores.softmax(dim=-1, dtype=scores.dtype)
    watcher = getattr(module, "watcher", None)
    if watcher is not None:
        watcher(weights)
    return (weights @ value).transpose(1, 2), None

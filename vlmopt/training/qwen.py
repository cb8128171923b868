"""`tiny-qwen`: a stock Qwen2.5-VL of about 4 M parameters whose tokens know their place by their positions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from vlmopt.checkpoints.processor import build_processor
from vlmopt.synthetic import World
from vlmopt.synthetic.words import CELL

from .architecture import (
    FEED_FORWARD,
    HEADS,
    HIDDEN,
    LAYERS,
    TOWER_FEED_FORWARD,
    Architecture,
    Pointing,
    pixel_values,
)
from .vocabulary import END, IMAGE, PAD, VIDEO, VISION_END, VISION_START

TOWER_LAYERS, KEY_HEADS = 4, 2
SECTIONS = (6, 8, 10)  # rotary pairs of a head for time, height, width
TOKENS_PER_SECOND = 2  # of the time axis of positions
THETA = 60.0  # low, so that a step of one cell turns even the width pairs by a usable angle


@dataclass(frozen=True)
class Qwen(Architecture):
    """M-RoPE positions on the grid; places are learned from them, with probes and one head told where to look."""

    model_class = Qwen2_5_VLForConditionalGeneration
    key_heads = KEY_HEADS

    def configuration(self, tokenizer: PreTrainedTokenizerFast) -> Qwen2_5_VLConfig:
        """Return the configuration: every tower block attends over all of the image, merging is off.

        An image of 224×224 pixels is 256 visual tokens.
        """
        token_id = tokenizer.convert_tokens_to_ids
        special = {"eos_token_id": token_id(END), "pad_token_id": token_id(PAD)}
        text = dict(
            vocab_size=len(tokenizer),
            hidden_size=HIDDEN,
            intermediate_size=FEED_FORWARD,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            num_key_value_heads=KEY_HEADS,
            max_position_embeddings=4096,
            rope_parameters={"rope_type": "default", "rope_theta": THETA, "mrope_section": list(SECTIONS)},
            bos_token_id=None,
            tie_word_embeddings=True,
            **special,
        )
        vision = {
            "depth": TOWER_LAYERS,
            "hidden_size": HIDDEN,
            "intermediate_size": TOWER_FEED_FORWARD,
            "num_heads": HEADS,
            "patch_size": CELL,
            "spatial_merge_size": 1,
            "temporal_patch_size": 2,
            "window_size": 16 * CELL,
            "out_hidden_size": HIDDEN,
            "fullatt_block_indexes": list(range(TOWER_LAYERS)),
            "tokens_per_second": TOKENS_PER_SECOND,
        }
        return Qwen2_5_VLConfig(
            text_config=text,
            vision_config=vision,
            image_token_id=token_id(IMAGE),
            video_token_id=token_id(VIDEO),
            vision_start_token_id=token_id(VISION_START),
            vision_end_token_id=token_id(VISION_END),
            tie_word_embeddings=True,
            **special,
        )

    def visual(self, model: Any) -> nn.Module:
        tower: nn.Module = model.model.visual
        return tower

    def see(self, model: Any, worlds: list[World]) -> tuple[torch.Tensor, torch.Tensor | None]:
        pixels, grid = patches(worlds)
        tokens = model.model.visual(pixels, grid_thw=grid).pooler_output
        return tokens.view(len(worlds), -1, tokens.shape[-1]), None

    def positions(self, kept: torch.Tensor, rows: int, columns: int) -> tuple[torch.Tensor, int]:
        return 2 + torch.stack([torch.zeros_like(kept), kept // columns, kept % columns]), 2 + max(rows, columns)

    def mask(self, mask: torch.Tensor) -> Any:
        return {"full_attention": mask}

    def processor(self, tokenizer: PreTrainedTokenizerFast, chat_template: str) -> Any:
        return build_processor(tokenizer, chat_template, CELL, 1)


def patches(worlds: list[World]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return pixels as the stock image processor lays them out: [b·cells, 3·2·14·14] and grid [b, 3]."""
    pixels = pixel_values(worlds)
    b, height, width, _ = pixels.shape
    rows, columns = height // CELL, width // CELL
    tiles = pixels.view(b, rows, CELL, columns, CELL, 3).permute(0, 1, 3, 5, 2, 4)  # [b, r, c, 3, 14, 14]
    flat = tiles[:, :, :, :, None].expand(-1, -1, -1, -1, 2, -1, -1).reshape(b * rows * columns, -1)
    return flat, torch.tensor([[1, rows, columns]] * b)


QWEN = Qwen(
    sizes={(224, 224): 0.7, (280, 196): 0.15, (196, 280): 0.15},
    steps={"tower": 2400, "language": 1000, "joint": 500, "prior": 400, "type": 900, "web": 350},
    rates={"tower": 4e-3, "language": 4e-3, "joint": 2e-3, "prior": 1e-3, "type": 3e-3, "web": 1e-3},
    cooldowns={"tower": 0.25, "language": 0.25, "joint": 0.8, "prior": 0.8, "type": 0.5, "web": 0.8},
    probed_layer=1,
    pointing=Pointing(layer=3, head=0),
)

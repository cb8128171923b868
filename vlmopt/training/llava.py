"""`tiny-llava`: a stock LLaVA-1.5 of about 4 M parameters: CLIP tower, padded squares, 1-D RoPE.

Its visual tokens carry their place, as CLIP's position embedding gives it to them: a click is to attend and to copy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from vlmopt.synthetic import World
from vlmopt.synthetic.words import CELL

from .architecture import (
    FEED_FORWARD,
    HEADS,
    HIDDEN,
    LAYERS,
    MEAN,
    STD,
    TOWER_FEED_FORWARD,
    Architecture,
    Pointing,
    attend_to_likes,
    pixel_values,
)
from .vocabulary import END, IMAGE, PAD

TOWER_LAYERS = 5  # the last one serves the CLS token alone: the projector reads what goes into it
SQUARE = 16  # cells a side
# The all-ones rotary kernel Σ cos(Δ·θ_j) falls from Δ = 30 to 286 by 2.8, as in LLaVA-1.5 over its 576 tokens (2.9).
THETA = 2000.0
WAVES = torch.logspace(math.log10(2.5), math.log10(0.15), HIDDEN // 4)  # radians a cell, initial position embedding
# Where the tower's heads look at first, (rows, columns) away, layer by layer: letters reach over several cells.
NEIGHBOURS = tuple(((0, -step), (0, step), (-1, 0), (1, 0)) for step in (1, 2, 1))
LOUDNESS, SHARPNESS = 4.0, 2.0  # of the positions beside the pixels, which grow; of these looks


@dataclass(frozen=True)
class Llava(Architecture):
    """Raster positions one apart; nothing about the language model tells rows from columns."""

    model_class = LlavaForConditionalGeneration
    key_heads = HEADS

    def configuration(self, tokenizer: PreTrainedTokenizerFast) -> LlavaConfig:
        """Return the configuration; every image is 256 visual tokens, padding included."""
        token_id = tokenizer.convert_tokens_to_ids
        special = {"eos_token_id": token_id(END), "pad_token_id": token_id(PAD)}
        text = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=HIDDEN,
            intermediate_size=FEED_FORWARD,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            num_key_value_heads=HEADS,
            max_position_embeddings=4096,
            rope_parameters={"rope_type": "default", "rope_theta": THETA},
            bos_token_id=None,
            tie_word_embeddings=True,
            **special,
        )
        vision = CLIPVisionConfig(
            hidden_size=HIDDEN,
            intermediate_size=TOWER_FEED_FORWARD,
            num_hidden_layers=TOWER_LAYERS,
            num_attention_heads=HEADS,
            image_size=SQUARE * CELL,
            patch_size=CELL,
            projection_dim=HIDDEN,
        )
        return LlavaConfig(
            text_config=text,
            click_units="pixels",
            vision_config=vision,
            image_token_index=token_id(IMAGE),
            image_seq_length=SQUARE * SQUARE,
            vision_feature_layer=-2,
            vision_feature_select_strategy="default",
            tie_word_embeddings=True,
            **special,
        )

    def prepare(self, model: Any) -> None:
        """Start places as 2-D sine waves, and let the tower's first heads look at neighbouring cells.

        After ConViT (d'Ascoli et al., arXiv 2103.10697), whose heads start as convolutions; here by the initial values
        of stock parameters alone.
        """
        tower = model.model.vision_tower
        angles = torch.arange(SQUARE)[:, None] * WAVES
        axis = torch.cat([angles.sin(), angles.cos()], dim=1)
        rows, columns = axis[:, None].expand(-1, SQUARE, -1), axis[None].expand(SQUARE, -1, -1)
        places = tower.embeddings.position_embedding.weight
        places[0] = 0
        places[1:] = LOUDNESS * torch.cat([rows, columns], dim=-1).flatten(0, 1)
        tower.embeddings.patch_embedding.weight *= 0.5
        for number, layer in enumerate(tower.encoder.layers):
            offsets = NEIGHBOURS[number] if number < len(NEIGHBOURS) else ()
            attend_to_likes(layer.self_attn, HEADS, spread=0.01 if offsets else 0.04)
            for head, offset in enumerate(offsets):
                look_aside(layer.self_attn, head, offset)

    def visual(self, model: Any) -> nn.Module:
        return nn.ModuleDict({"tower": model.model.vision_tower, "projector": model.model.multi_modal_projector})

    def see(self, model: Any, worlds: list[World]) -> tuple[torch.Tensor, torch.Tensor | None]:
        seen = model.model.vision_tower(padded(worlds), output_hidden_states=True)
        return model.model.multi_modal_projector(seen.hidden_states[-2][:, 1:]), seen.pooler_output

    def positions(self, kept: torch.Tensor, rows: int, columns: int) -> tuple[torch.Tensor, int]:
        return 2 + kept[None], 2 + rows * columns

    def processor(self, tokenizer: PreTrainedTokenizerFast, chat_template: str) -> Any:
        from transformers import LlavaImageProcessorPil, LlavaProcessor

        side = SQUARE * CELL
        images = LlavaImageProcessorPil(
            do_pad=True, size={"shortest_edge": side}, crop_size={"height": side, "width": side}
        )
        return LlavaProcessor(
            images,
            tokenizer,
            patch_size=CELL,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
            chat_template=chat_template,
        )


def look_aside(attention: Any, head: int, offset: tuple[int, int]) -> None:
    """Add weights by which a head's query is the position wave `offset` cells away; every head reads other waves."""
    waves = torch.arange(head, HIDDEN // 4, HEADS)
    width = len(waves)
    for axis, away in enumerate(offset):
        sines = axis * HIDDEN // 2 + waves
        cosines = sines + HIDDEN // 4
        first = head * (HIDDEN // HEADS) + axis * 2 * width + torch.arange(width)
        second = first + width
        turn = WAVES[waves] * away
        attention.k_proj.weight[first, sines] += SHARPNESS
        attention.k_proj.weight[second, cosines] += SHARPNESS
        attention.q_proj.weight[first, sines] += SHARPNESS * turn.cos()
        attention.q_proj.weight[first, cosines] += SHARPNESS * turn.sin()
        attention.q_proj.weight[second, cosines] += SHARPNESS * turn.cos()
        attention.q_proj.weight[second, sines] -= SHARPNESS * turn.sin()


def padded(worlds: list[World]) -> torch.Tensor:
    """Return pixels as the stock image processor makes them, [b, 3, 224, 224]: the mean colour around the image."""
    pixels = pixel_values(worlds)
    b, height, width, _ = pixels.shape
    side = SQUARE * CELL
    square = (((MEAN * 255).int() / 255 - MEAN) / STD).expand(b, side, side, 3).clone()
    top, left = (side - height) // 2, (side - width) // 2
    square[:, top : top + height, left : left + width] = pixels
    return square.permute(0, 3, 1, 2).contiguous()


LLAVA = Llava(
    # The long side is always 224, and what is missing on the short one an even number of whole cells.
    sizes={(224, 224): 0.28} | {size: 0.12 for short in (168, 140, 112) for size in ((224, short), (short, 224))},
    steps={"tower": 3400, "language": 900, "joint": 500, "prior": 400},
    rates={"tower": 2e-3, "language": 4e-3, "joint": 1e-3, "prior": 1e-3},
    cooldowns={"tower": 0.45, "language": 0.25, "joint": 0.8, "prior": 0.8},
    square=SQUARE,
    places=True,
    pointing=Pointing(layer=2, head=0),
)

"""The bundled checkpoint's shape, a stock Qwen2.5-VL of about 4 M parameters, and a fast CPU attention to train it."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    AttentionInterface,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)

from vlmopt.worlds.words import CELL

from .vocabulary import END, IMAGE, PAD, VIDEO, VISION_END, VISION_START, embedding_table

HIDDEN, LAYERS, HEADS, KEY_HEADS, FEED_FORWARD = 192, 6, 4, 2, 512
TOWER_LAYERS, TOWER_FEED_FORWARD = 4, 384
SECTIONS = (6, 8, 10)  # rotary pairs of a head for time, height, width
THETA = 60.0  # low, so that a step of one cell turns even the width pairs by a usable angle


def configuration(tokenizer: PreTrainedTokenizerFast) -> Qwen2_5_VLConfig:
    """Every tower block attends over the whole picture and merging is off: a 224×224 picture is 256 visual tokens."""
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
        "tokens_per_second": 2,
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


def build_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> Qwen2_5_VLForConditionalGeneration:
    """A fresh model with frozen word embeddings; heads start out attending to tokens that share their words."""
    torch.manual_seed(seed)
    AttentionInterface.register("training_bmm", bmm_attention)
    model = Qwen2_5_VLForConditionalGeneration._from_config(
        configuration(tokenizer), attn_implementation="training_bmm", dtype=torch.float32
    )
    with torch.no_grad():
        embeddings = model.get_input_embeddings().weight
        embeddings.copy_(embedding_table(tokenizer, HIDDEN, seed))
        for layer in model.model.language_model.layers:
            attention = layer.self_attn
            attention.k_proj.weight.normal_(std=0.04)
            copies = attention.k_proj.weight.view(KEY_HEADS, 1, -1, HIDDEN).expand(-1, HEADS // KEY_HEADS, -1, -1)
            attention.q_proj.weight.copy_(copies.reshape(HIDDEN, HIDDEN))
            attention.q_proj.weight.add_(0.02 * torch.randn(HIDDEN, HIDDEN))
    embeddings.requires_grad_(False)
    return model


def bmm_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float = 1.0,
    **_kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Plain attention; with bfloat16 matrix units it trains about twice as fast on CPU as the fused operator.

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

"""Random-weight models of real shapes and one prompt for each; with fewer layers where memory forbids all."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)

IMAGE, VIDEO, START, END = 1000, 1003, 1001, 1002
QUESTION = 32  # text tokens after the image
FULL = {"llava-1.5-7b": 32, "qwen2.5-vl-7b": 28}  # decoder layers
TOWER = {"llava-1.5-7b": 24, "qwen2.5-vl-7b": 32}


def build(
    name: str, layers: int, tower_layers: int, device: str, dtype: torch.dtype, toy: bool = False
) -> tuple[Any, dict[str, Any]]:
    """Return model and inputs.

    Args:
        name: a key of `FULL`. layers, tower_layers: how many to build, the whole model's numbers stand in `FULL` and
            `TOWER`. toy: make every layer narrow, for a run that shows no more than that it runs.
    """
    config = {"llava-1.5-7b": llava, "qwen2.5-vl-7b": qwen}[name](layers, tower_layers)
    if toy:
        narrow(config)
    cls = LlavaForConditionalGeneration if name.startswith("llava") else Qwen2_5_VLForConditionalGeneration
    torch.manual_seed(0)
    with torch.device(device):
        model = cls._from_config(config, dtype=dtype, attn_implementation="sdpa").eval()
    return model, {k: v.to(device) for k, v in (llava_inputs if name.startswith("llava") else qwen_inputs)().items()}


def narrow(config: Any) -> None:
    """Make the layers of a config from here a toy's, 64 channels a head as before or fewer."""
    text, vision = config.text_config, config.vision_config
    text.hidden_size, text.intermediate_size, text.num_attention_heads, text.num_key_value_heads = 256, 256, 4, 2
    text.head_dim = 64
    vision.hidden_size, vision.intermediate_size = 64, 64
    if hasattr(vision, "out_hidden_size"):
        vision.num_heads, vision.out_hidden_size = 4, 256
        text.rope_parameters = {**text.rope_parameters, "mrope_section": [8, 12, 12]}
    else:
        vision.num_attention_heads = 4


def llava(layers: int, tower_layers: int) -> LlavaConfig:
    """Return LLaVA-1.5-7B: CLIP-L/14-336, 576 visual tokens, Llama-2-7B; a small vocabulary."""
    text = LlamaConfig(
        hidden_size=4096, intermediate_size=11008, num_hidden_layers=layers, num_attention_heads=32,
        num_key_value_heads=32, vocab_size=1024, max_position_embeddings=4096, bos_token_id=1, eos_token_id=2,
        pad_token_id=0,
    )  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=tower_layers, num_attention_heads=16,
        image_size=336, patch_size=14, projection_dim=768,
    )  # fmt: skip
    return LlavaConfig(text_config=text, vision_config=vision, image_token_index=IMAGE, vision_feature_layer=-2)


def llava_inputs() -> dict[str, torch.Tensor]:
    ids = torch.tensor([[5, 6, 7, *[IMAGE] * 576, *range(10, 10 + QUESTION)]])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": torch.randn(1, 3, 336, 336)}


def qwen(layers: int, tower_layers: int) -> Qwen2_5_VLConfig:
    """Return Qwen2.5-VL-7B, 1 024 visual tokens (an image of 896 x 896); a small vocabulary."""
    text = {
        "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": layers, "num_attention_heads": 28,
        "num_key_value_heads": 4, "vocab_size": 1024, "max_position_embeddings": 32768, "tie_word_embeddings": False,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
        "rope_parameters": {"rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1e6},
    }  # fmt: skip
    vision = {
        "depth": tower_layers, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 3584,
        "fullatt_block_indexes": sorted({min(i, tower_layers - 1) for i in (7, 15, 23, 31)}), "patch_size": 14,
        "window_size": 112,
    }  # fmt: skip
    return Qwen2_5_VLConfig(
        text_config=text, vision_config=vision, image_token_id=IMAGE, video_token_id=VIDEO,
        vision_start_token_id=START, vision_end_token_id=END,
    )  # fmt: skip


def qwen_inputs() -> dict[str, torch.Tensor]:
    ids = torch.tensor([[5, 6, 7, START, *[IMAGE] * 1024, END, *range(10, 10 + QUESTION)]])
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.randn(64 * 64, 3 * 2 * 14 * 14),
        "image_grid_thw": torch.tensor([[1, 64, 64]]),
        "mm_token_type_ids": (ids == IMAGE).long(),
    }

"""Write a trained model as an ordinary checkpoint directory."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from .architecture import Architecture
from .vocabulary import CHAT_TEMPLATE


def export(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, architecture: Architecture, directory: Path
) -> None:
    """Save model, tokenizer and processor; weights are stored in bfloat16 for size, and load as float32."""
    directory.mkdir(parents=True, exist_ok=True)
    model.generation_config.max_new_tokens = 64
    model.generation_config.do_sample = False
    model.set_attn_implementation("sdpa")
    model.to(torch.bfloat16).save_pretrained(directory)
    model.config.dtype = torch.float32
    model.config.save_pretrained(directory)
    architecture.processor(tokenizer, CHAT_TEMPLATE).save_pretrained(directory)

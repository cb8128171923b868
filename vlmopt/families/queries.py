"""Families whose visual tokens answer learned queries, and lie on no grid."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import layouts
from .base import Family


def embed_text(decoder: Any, given: dict[str, Any]) -> Tensor:
    """Embed the tokens that BLIP-2's language model generates; it is handed embeddings with images once."""
    embeds: Tensor = decoder.embed_tokens(given["input_ids"])
    return embeds


def captioned(config: Any, pixels: Tensor) -> Tensor:
    """Return the ids with which BLIP-2 asks for captions, where it is handed pixels alone."""
    ids = [config.image_token_index] * config.num_query_tokens + [config.text_config.bos_token_id]
    return torch.tensor(ids, device=pixels.device).expand(len(pixels), -1)


FAMILIES = (
    Family(
        "aria",
        ("aria",),
        "rhymes-ai/Aria",
        "model.vision_tower",
        "model.multi_modal_projector",
        layouts.queries,
    ),
    Family(
        "idefics2",
        ("idefics2",),
        "HuggingFaceM4/idefics2-8b",
        "model.vision_model",
        "model.connector",
        layouts.queries_of_sample,
    ),
    *(
        Family(
            name,
            types,
            example,
            "vision_model",
            "language_projection",
            layouts.queries,
            encoder="language_projection",
            embed=embed_text,
            prompt=captioned,
        )
        for name, types, example in (
            ("blip_2", ("blip-2",), "Salesforce/blip2-opt-2.7b"),
            ("instructblip", ("instructblip",), "Salesforce/instructblip-vicuna-7b"),
        )
    ),
)

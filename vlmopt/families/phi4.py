"""Phi-4-multimodal, whose decoder puts images into its prompt by itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .base import Piece
from .layouts import with_newlines

EXTENDED = (
    "image_pixel_values", "image_sizes", "image_attention_mask",
    "audio_input_features", "audio_embed_sizes", "audio_attention_mask",
)  # fmt: skip


def embed(decoder: Any, given: dict[str, Any]) -> Tensor:
    """Return the embeddings that the decoder makes of its arguments."""
    ids = given["input_ids"]
    extended = {name: given.get(name) for name in EXTENDED}
    embeds: Tensor = decoder.embed_tokens_extend(ids, decoder.embed_tokens(ids), **extended)
    return embeds


def layout(modality: str, lengths: list[int], arguments: dict[str, Any], config: Any) -> list[Piece]:
    """Lay out the unpadded image, a row end after each row and a token of its own; then a square overview, likewise.

    What the encoder returns are whole prompts, so that lengths follow from the images' sizes.
    """
    vision, mask = config.vision_config, arguments["image_attention_mask"]
    side = (vision.image_size // vision.patch_size + 1) // 2
    pieces = []
    for i, (height, width) in enumerate((arguments["image_sizes"].view(-1, 2) // vision.crop_size).tolist()):
        crops = mask[i, 1 : 1 + height * width, ::2, ::2].view(height, width, side, side)
        h, w = int(crops[:, 0, :, 0].sum()), int(crops[0, :, 0].sum())
        pieces.append(ended(with_newlines(h * (w + 1), (1, h, w), newlines=h)))
        pieces.append(with_newlines(side * (side + 1), (1, side, side), newlines=side))
    return pieces


def ended(piece: Piece) -> Piece:
    """Add one token that is no patch."""
    return Piece(piece.length + 1, piece.kind, piece.grid, torch.cat([piece.coords, torch.full((1, 3), -1)]))

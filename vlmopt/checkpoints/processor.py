"""The processor of the bundled checkpoint.

The stock Qwen2.5-VL processor insists on a video processor, and that needs torchvision. `PaddleOCRVLProcessor` is the
stock class with the same duties for pictures alone (same placeholders, same `mm_token_type_ids`), so a checkpoint that
names it loads through `AutoProcessor` with torchvision or without, and with nothing registered.
"""

from __future__ import annotations

from typing import Any

from transformers import AutoProcessor


def build_processor(tokenizer: Any, chat_template: str, patch_size: int, merge_size: int) -> Any:
    """Pair a tokenizer that knows `image_token` with the Qwen2-VL image processor."""
    from transformers import PaddleOCRVLProcessor, Qwen2VLImageProcessorPil

    cell = patch_size * merge_size
    images = Qwen2VLImageProcessorPil(
        patch_size=patch_size,
        merge_size=merge_size,
        temporal_patch_size=2,
        size={"shortest_edge": 16 * cell * cell, "longest_edge": 400 * cell * cell},
    )
    return PaddleOCRVLProcessor(images, tokenizer, chat_template=chat_template)


def load_processor(source: str) -> Any:
    """Load the processor of `source`; raises ValueError where only a bare tokenizer comes back."""
    processor = AutoProcessor.from_pretrained(source)
    if not hasattr(processor, "image_processor"):
        raise ValueError(
            f"{source!r} gives a {type(processor).__name__} and no image processor with this transformers; "
            "install a newer transformers, or torchvision if the checkpoint's processor handles video"
        )
    return processor

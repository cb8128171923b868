"""Processors that own a video part load for pictures alone where torchvision is missing."""

from __future__ import annotations

from pathlib import Path

import pytest
import transformers
from transformers import AutoImageProcessor, Qwen2TokenizerFast

from tests.support.stock import save_checkpoint
from vlmopt.checkpoints.processor import without_video


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    directory: Path = save_checkpoint(tmp_path_factory.mktemp("stock"))
    tokenizer = Qwen2TokenizerFast.from_pretrained(directory)
    for name in ("start_image", "end_image", "context_image", "video", "image"):
        setattr(tokenizer, f"{name}_token", "<|image_pad|>")
        setattr(tokenizer, f"{name}_token_id", 5)
    return {"image_processor": AutoImageProcessor.from_pretrained(directory), "tokenizer": tokenizer}


@pytest.mark.parametrize("family", ["Qwen2VL", "Qwen2_5_VL", "Qwen3VL", "InternVL", "LlavaOnevision"])
def test_processors_without_their_video_part(family: str, parts: dict[str, object]) -> None:
    config = getattr(transformers, f"{family}Config")()
    processor = without_video(config)(**parts, chat_template="{{ messages }}")
    assert isinstance(processor, transformers.PROCESSOR_MAPPING[type(config)])
    assert processor.pictures_only
    assert processor.image_processor is parts["image_processor"]
    assert processor.chat_template == "{{ messages }}"
    assert not hasattr(processor, "video_processor")

"""Processors that own a video part load for images alone where torchvision is missing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from transformers import AutoImageProcessor, Qwen2TokenizerFast

from tests.support.stock import save_checkpoint
from vlmopt.checkpoints import bundled, load_checkpoint
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
    assert processor.images_only
    assert processor.image_processor is parts["image_processor"]
    assert processor.chat_template == "{{ messages }}"
    assert not hasattr(processor, "video_processor")


def test_a_checkpoint_runs_no_code_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = []
    for auto in (transformers.AutoModelForImageTextToText, transformers.AutoProcessor):
        load = auto.from_pretrained
        monkeypatch.setattr(auto, "from_pretrained", lambda s, load=load, **o: asked.append(o) or load(s, **o))
    model, processor = load_checkpoint(bundled()[0], dtype=torch.bfloat16)
    assert asked == [
        {"use_safetensors": True, "trust_remote_code": False, "dtype": torch.bfloat16},
        {"trust_remote_code": False},
    ]
    model.config.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        load_checkpoint(tmp_path)

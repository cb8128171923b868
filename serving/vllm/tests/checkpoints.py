"""Checkpoints as vLLM wants them: the bundled ones, and small random ones of the other families. No network.

All speak with tiny-qwen's tokenizer, whose first ids are <|endoftext|> <|im_end|> <|user|> <|assistant|>
<|vision_start|> <|vision_end|> <|image_pad|> <|video_pad|>.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from torch import nn

import vlmopt

BUNDLED = Path(vlmopt.__file__).parent / "checkpoints"
EOS, START, END, IMAGE, VIDEO, VOCABULARY = 1, 4, 5, 6, 7, 652
CLIP = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
QWEN_IDS = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "vision_start_token_id": START,
    "vision_end_token_id": END,
}


def text(**extra: Any) -> dict[str, Any]:
    return {
        "hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 4, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": VOCABULARY, "max_position_embeddings": 4096, "eos_token_id": EOS,
        "pad_token_id": 0, "bos_token_id": None, **extra,
    }  # fmt: skip


def mrope(sections: list[int], **extra: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": sections, **extra}}


def qwen_tower(**extra: Any) -> dict[str, Any]:
    return {
        "depth": 4, "hidden_size": 128, "intermediate_size": 192, "num_heads": 4, "in_channels": 3, "patch_size": 14,
        "spatial_merge_size": 2, "temporal_patch_size": 2, "out_hidden_size": 128, **extra,
    }  # fmt: skip


def tokenizer() -> Any:
    return hf.AutoTokenizer.from_pretrained(BUNDLED / "tiny-qwen")


def template(image: str = "<|vision_start|><|image_pad|><|vision_end|>") -> str:
    text = (BUNDLED / "tiny-qwen" / "chat_template.jinja").read_text()
    return text.replace("<|vision_start|><|image_pad|><|vision_end|>", image)


def qwen_processor(kind: Any, videos: Any = hf.Qwen2VLVideoProcessor, patch: int = 14, merge: int = 2) -> Any:
    cell = (patch * merge) ** 2
    sizes = {"patch_size": patch, "merge_size": merge, "temporal_patch_size": 2, **CLIP}
    images = hf.Qwen2VLImageProcessor(size={"shortest_edge": 4 * cell, "longest_edge": 400 * cell}, **sizes)
    frames = videos(size={"shortest_edge": 4 * cell, "longest_edge": 4000 * cell}, **sizes)
    return kind(images, tokenizer(), frames, chat_template=template())


def random_weights(model: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim >= 2:
                p.normal_(0, 0.15, generator=generator)
            elif not ("norm" in name and name.endswith("weight")):
                p.normal_(0, 0.02, generator=generator)
    return model.float().eval()


def written(folder: Path, model: nn.Module, processor: Any) -> Path:
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = EOS, 0
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def tiny_qwen(folder: Path) -> Path:
    """The bundled one, its processor the stock Qwen2.5-VL one, which vLLM asks for."""
    for name in (
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ):
        shutil.copy(BUNDLED / "tiny-qwen" / name, folder / name)
    own = json.loads((BUNDLED / "tiny-qwen" / "processor_config.json").read_text())["image_processor"]
    sizes = {k: own[k] for k in ("patch_size", "merge_size", "temporal_patch_size", "size", "image_mean", "image_std")}
    images, frames = hf.Qwen2VLImageProcessor(**sizes), hf.Qwen2VLVideoProcessor(**sizes)
    hf.Qwen2_5_VLProcessor(images, tokenizer(), frames, chat_template=template()).save_pretrained(folder)
    return folder


def tiny_llava(folder: Path) -> Path:
    """The bundled one."""
    for file in (BUNDLED / "tiny-llava").iterdir():
        if file.suffix in (".json", ".jinja"):
            shutil.copy(file, folder / file.name)
    shutil.copy(BUNDLED / "tiny-llava" / "model.safetensors", folder)
    return as_older_releases_saved(folder)


def as_older_releases_saved(folder: Path) -> Path:
    """Weights of a CLIP or SigLIP tower under the names that vLLM 0.32 knows; transformers reads both."""
    file = folder / "model.safetensors"
    weights = load_file(file)
    renamed = {name.replace("vision_tower.", "vision_tower.vision_model.", 1): v for name, v in weights.items()}
    save_file(renamed, file, metadata={"format": "pt"})
    return folder


def qwen2_vl(folder: Path) -> Path:
    tower = {**qwen_tower(embed_dim=128, mlp_ratio=2), "hidden_size": 128}
    config = hf.Qwen2VLConfig(text_config=text(**mrope([6, 5, 5])), vision_config=tower, **QWEN_IDS)
    model = random_weights(hf.Qwen2VLForConditionalGeneration(config))
    return written(folder, model, qwen_processor(hf.Qwen2VLProcessor))


def qwen2_5_vl(folder: Path) -> Path:
    tower = qwen_tower(fullatt_block_indexes=[1, 3], window_size=112, tokens_per_second=2)
    config = hf.Qwen2_5_VLConfig(text_config=text(**mrope([6, 5, 5])), vision_config=tower, **QWEN_IDS)
    model = random_weights(hf.Qwen2_5_VLForConditionalGeneration(config))
    return written(folder, model, qwen_processor(hf.Qwen2_5_VLProcessor))


def qwen3_vl(folder: Path) -> Path:
    tower = qwen_tower(num_position_embeddings=256, deepstack_visual_indexes=[0, 1, 2])
    config = hf.Qwen3VLConfig(
        text_config=text(head_dim=32, **mrope([6, 5, 5], mrope_interleaved=True)), vision_config=tower, **QWEN_IDS
    )
    model = random_weights(hf.Qwen3VLForConditionalGeneration(config))
    return written(folder, model, qwen_processor(hf.Qwen3VLProcessor, hf.Qwen3VLVideoProcessor))


def qwen3_5(folder: Path) -> Path:
    linear = {
        "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 128,
        "linear_value_head_dim": 128,  # which vLLM's kernel for CPUs takes
        "linear_conv_kernel_dim": 4, "layer_types": ["linear_attention", "full_attention"] * 2,
    }  # fmt: skip
    rope = mrope([6, 5, 5], mrope_interleaved=True, partial_rotary_factor=0.5)
    config = hf.Qwen3_5Config(
        text_config=text(head_dim=64, **linear, **rope),
        vision_config=qwen_tower(num_position_embeddings=256),
        **QWEN_IDS,
    )
    model = random_weights(hf.Qwen3_5ForConditionalGeneration(config))
    return written(folder, model, qwen_processor(hf.Qwen3VLProcessor, hf.Qwen3VLVideoProcessor))


def square_tower(kind: Any, side: int, **extra: Any) -> Any:
    sizes = {"hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 3, "num_attention_heads": 4}
    return kind(**{**sizes, "image_size": side, "patch_size": 14, **extra})


def llava_onevision(folder: Path) -> Path:
    tower = square_tower(hf.SiglipVisionConfig, 112, vision_use_head=False)
    pinpoints = [[112, 224], [224, 112], [224, 224]]
    config = hf.LlavaOnevisionConfig(
        text_config=hf.Qwen2Config(**text()), vision_config=tower, image_token_index=IMAGE, video_token_index=VIDEO,
        image_grid_pinpoints=pinpoints, vision_feature_select_strategy="full", vision_feature_layer=-1,
    )  # fmt: skip
    model = random_weights(hf.LlavaOnevisionForConditionalGeneration(config))
    side = {"size": {"height": 112, "width": 112}, **CLIP}
    processor = hf.LlavaOnevisionProcessor(
        hf.LlavaOnevisionImageProcessor(image_grid_pinpoints=pinpoints, **side), tokenizer(),
        hf.LlavaOnevisionVideoProcessor(**side), num_image_tokens=64, vision_feature_select_strategy="full",
        chat_template=template("<|image_pad|>"), image_token="<|image_pad|>", video_token="<|video_pad|>",
    )  # fmt: skip
    return as_older_releases_saved(written(folder, model, processor))


def internvl(folder: Path) -> Path:
    tower = square_tower(
        hf.InternVLVisionConfig, 112, image_size=[112, 112], patch_size=[14, 14], layer_scale_init_value=0.5
    )
    config = hf.InternVLConfig(
        text_config=hf.Qwen2Config(**text()), vision_config=tower, image_token_id=IMAGE, downsample_ratio=0.5,
        image_seq_length=16,
    )  # fmt: skip
    model = random_weights(hf.InternVLForConditionalGeneration(config))
    words = tokenizer()
    names = {
        "start_image_token": "<|vision_start|>", "end_image_token": "<|vision_end|>", "context_image_token":
        "<|image_pad|>", "video_token": "<|video_pad|>",
    }  # fmt: skip
    for name, token in names.items():
        setattr(words, name, token)
        setattr(words, f"{name}_id", words.convert_tokens_to_ids(token))
    words.init_kwargs.update(names)
    side = {"size": {"height": 112, "width": 112}, **CLIP}
    processor = hf.InternVLProcessor(
        hf.GotOcr2ImageProcessor(crop_to_patches=True, min_patches=1, max_patches=4, **side), words,
        hf.InternVLVideoProcessor(**side), image_seq_length=16, chat_template=template("<|image_pad|>"),
    )  # fmt: skip
    return written(folder, model, processor)


CHECKPOINTS: dict[str, Callable[[Path], Path]] = {
    function.__name__: function
    for function in (tiny_qwen, tiny_llava, qwen2_vl, qwen2_5_vl, qwen3_vl, qwen3_5, llava_onevision, internvl)
}


def checkpoint(name: str, folder: Path) -> Path:
    """The folder of a checkpoint below `folder`, made if missing."""
    if not (folder / name).exists():
        (folder / name).mkdir(parents=True)
        CHECKPOINTS[name](folder / name)
    return folder / name

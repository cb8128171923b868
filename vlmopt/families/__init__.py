"""The families that vlmopt knows, as data. An undescribed family takes the generic path and the report says so."""

from __future__ import annotations

from typing import Any

from . import layouts, patches
from .base import Family, Piece

CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
IMAGENET_STD = (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)
THW = {"image": "image_grid_thw", "video": "video_grid_thw"}
IMAGE_SIZES = {"image": "image_sizes"}

_FAMILIES = (
    Family(
        "qwen2_vl",
        ("qwen2_vl",),
        "Qwen/Qwen2-VL-2B-Instruct",
        "model.visual",
        "model.visual.merger",
        layouts.patch_grid,
        THW,
        by_token=True,
        cells=patches.patch_cells,
        image_std=CLIP_STD,
        patch_grid=True,
        click_units="thousand",
    ),
    Family(
        "qwen2_5_vl",
        ("qwen2_5_vl",),
        "Qwen/Qwen2.5-VL-3B-Instruct",
        "model.visual",
        "model.visual.merger",
        layouts.patch_grid,
        THW,
        by_token=True,
        cells=patches.patch_cells,
        image_std=CLIP_STD,
        patch_grid=True,
        click_units="resized",
    ),
    Family(
        "qwen3_vl",
        ("qwen3_vl", "qwen3_vl_moe"),
        "Qwen/Qwen3-VL-4B-Instruct",
        "model.visual",
        "model.visual.merger",
        layouts.patch_grid,
        THW,
        by_token=True,
        cells=patches.patch_cells,
        image_std=HALF,
        patch_grid=True,
        frame_times=True,
        click_units="thousand",
    ),
    Family(
        "qwen3_5",
        ("qwen3_5", "qwen3_5_moe"),
        "Qwen/Qwen3.5-27B",
        "model.visual",
        "model.visual.merger",
        layouts.patch_grid,
        THW,
        by_token=True,
        cells=patches.patch_cells,
        image_std=HALF,
        patch_grid=True,
        frame_times=True,
        click_units="thousand",
    ),
    Family(
        "llava",
        ("llava",),
        "llava-hf/llava-1.5-7b-hf",
        "model.vision_tower",
        "model.multi_modal_projector",
        by_token=True,
        cells=patches.square_cells,
        image_std=CLIP_STD,
        click_units="unit",
    ),
    Family(
        "llava_next",
        ("llava_next",),
        "llava-hf/llava-v1.6-mistral-7b-hf",
        "model.vision_tower",
        "model.multi_modal_projector",
        layouts.any_resolution,
        IMAGE_SIZES,
        by_token=True,
        click_units="unit",
    ),
    Family(
        "llava_onevision",
        ("llava_onevision",),
        "llava-hf/llava-onevision-qwen2-0.5b-ov-hf",
        "model.vision_tower",
        "model.multi_modal_projector",
        layouts.any_resolution,
        IMAGE_SIZES,
        by_token=True,
    ),
    Family(
        "internvl",
        ("internvl",),
        "OpenGVLab/InternVL3-1B-hf",
        "model.vision_tower",
        "model.multi_modal_projector",
        layouts.square_tiles,
        by_token=True,
        patches=patches.shuffled,
        cells=patches.square_cells,
        image_std=IMAGENET_STD,
        click_units="thousand",
    ),
    Family(
        "idefics3",
        ("idefics3",),
        "HuggingFaceM4/Idefics3-8B-Llama3",
        "model.vision_model",
        "model.connector",
        layouts.tiles_of_sample,
    ),
    Family(
        "smolvlm",
        ("smolvlm",),
        "HuggingFaceTB/SmolVLM2-2.2B-Instruct",
        "model.vision_model",
        "model.connector",
        layouts.tiles_of_sample,
    ),
    Family(
        "gemma3",
        ("gemma3",),
        "google/gemma-3-4b-it",
        "model.vision_tower",
        "model.multi_modal_projector",
        cells=patches.square_cells,
        image_std=HALF,
    ),
    Family("gemma4", ("gemma4",), "google/gemma-4-E2B-it", "model.vision_tower", "model.embed_vision"),
    Family(
        "paligemma",
        ("paligemma",),
        "google/paligemma2-3b-mix-224",
        "model.vision_tower",
        "model.multi_modal_projector",
        cells=patches.square_cells,
        image_std=HALF,
        click_units="loc",
    ),
    Family(
        "mistral3",
        ("mistral3",),
        "mistralai/Mistral-Small-3.1-24B-Instruct-2503",
        "model.vision_tower",
        "model.multi_modal_projector",
        layouts.sized,
        IMAGE_SIZES,
    ),
    Family(
        "lfm2_vl",
        ("lfm2_vl",),
        "LiquidAI/LFM2-VL-1.6B",
        "model.vision_tower",
        "model.multi_modal_projector",
        layouts.unfolded,
        {"image": "spatial_shapes"},
    ),
    Family("fast_vlm", ("fast_vlm",), "KamilaMila/FastVLM-0.5B", "model.vision_tower", "model.multi_modal_projector"),
)


def families() -> dict[str, Family]:
    """Return the described families by name."""
    return {family.name: family for family in _FAMILIES}


def family_of(config: Any) -> Family:
    """Return the family of a model config; an undescribed one gets the generic description."""
    kind = getattr(config, "model_type", None)
    for family in _FAMILIES:
        if kind in family.model_types:
            return family
    return Family(str(kind), (str(kind),), "", "", "", described=False)


def click_units(config: Any) -> str | None:
    """Return the units of coordinates in a model's answers, by its config (`click_units`) or family; None: unknown."""
    own: str | None = getattr(config, "click_units", None)
    return own or family_of(config).click_units


__all__ = ["Family", "Piece", "click_units", "families", "family_of"]

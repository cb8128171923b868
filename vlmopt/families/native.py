"""Families whose images come as patches of any grid, in the order of Qwen's processor."""

from __future__ import annotations

from typing import Any

from . import layouts, patches
from .base import Family

CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)
THW = {"image": "image_grid_thw", "video": "video_grid_thw"}


def _merged(name: str, types: tuple[str, ...], example: str, **facts: Any) -> Family:
    """Describe a family with Qwen's tower: patches, merged by a `merger` inside it."""
    return Family(
        name, types, example, "model.visual", "model.visual.merger", layouts.patch_grid, THW, by_token=True,
        cells=patches.patch_cells, **facts,
    )  # fmt: skip


FAMILIES = (
    _merged(
        "qwen2_vl",
        ("qwen2_vl",),
        "Qwen/Qwen2-VL-2B-Instruct",
        image_std=CLIP_STD,
        patch_grid=True,
        click_units="thousand",
    ),
    _merged(
        "qwen2_5_vl",
        ("qwen2_5_vl",),
        "Qwen/Qwen2.5-VL-3B-Instruct",
        image_std=CLIP_STD,
        patch_grid=True,
        click_units="resized",
    ),
    _merged(
        "qwen3_vl",
        ("qwen3_vl", "qwen3_vl_moe"),
        "Qwen/Qwen3-VL-4B-Instruct",
        image_std=HALF,
        patch_grid=True,
        frame_times=True,
        click_units="thousand",
    ),
    _merged(
        "qwen3_5",
        ("qwen3_5", "qwen3_5_moe"),
        "Qwen/Qwen3.5-27B",
        image_std=HALF,
        patch_grid=True,
        frame_times=True,
        click_units="thousand",
    ),
    *(
        _merged(name, types, example, image_std=CLIP_STD)
        for name, types, example in (
            ("glm4v", ("glm4v", "glm4v_moe"), "zai-org/GLM-4.1V-9B-Thinking"),
            ("glm46v", ("glm46v",), "zai-org/GLM-4.6V-Flash"),
            ("glm_ocr", ("glm_ocr",), "zai-org/GLM-OCR"),
            ("exaone4_5", ("exaone4_5",), "LGAI-EXAONE/EXAONE-4.5-33B"),
            ("qwen2_5_omni", ("qwen2_5_omni_thinker",), "Qwen/Qwen2.5-Omni-3B"),
            ("qwen3_omni_moe", ("qwen3_omni_moe_thinker",), "Qwen/Qwen3-Omni-30B-A3B-Instruct"),
        )
    ),
    Family(
        "ernie4_5_vl_moe",
        ("ernie4_5_vl_moe",),
        "baidu/ERNIE-4.5-VL-28B-A3B-PT",
        "model.vision_tower",
        "model.resampler_model",
        layouts.patch_grid,
        THW,
        cells=patches.patch_cells,
        image_std=CLIP_STD,
    ),
    Family(
        "paddleocr_vl",
        ("paddleocr_vl",),
        "PaddlePaddle/PaddleOCR-VL",
        "model.visual",
        "model.projector",
        layouts.patch_grid,
        THW,
    ),
    Family(
        "kimi_k25",
        ("kimi_k25",),
        "moonshotai/Kimi-K2.6",
        "model.vision_tower",
        "model.mm_projector",
        layouts.pooled_frames,
        THW,
    ),
    *(
        Family(
            name,
            (name,),
            example,
            "model.vision_tower",
            "model.merger",
            layouts.downsampled,
            {"image": "target_sizes", "video": "target_sizes_videos"},
        )
        for name, example in (("minicpmv4_6", "openbmb/MiniCPM-V-4.6"), ("minicpmv4_7", "openbmb/MiniCPM-V-4.7-1B"))
    ),
    Family(
        "video_llama_3",
        ("video_llama_3",),
        "lkhl/VideoLLaMA3-2B-Image-HF",
        "model.vision_model",
        "model.projector",
        layouts.patch_grid,
        THW,
        by_token=True,
    ),
)

"""Configurations, prompts and pixels of the tiny Qwen models. A size is (t, h, w) in patches before merging."""

# ruff: noqa: C408

from __future__ import annotations

from typing import Any

import transformers as hf
from torch import Generator, Tensor, tensor

from tests.support.tiny import END, IMAGE, START, TEXT, V5, VIDEO, noise


def _mrope(sections: list[int], interleaved: bool = False) -> dict[str, Any]:
    rope: dict[str, Any] = dict(rope_type="default", mrope_section=sections)
    if interleaved:
        rope["mrope_interleaved"] = True
    if V5:
        return dict(rope_parameters=dict(rope, rope_theta=10000.0))
    return dict(rope_scaling=dict(rope, type="mrope"), rope_theta=10000.0)


def _qwen_ids() -> dict[str, int]:
    return dict(image_token_id=IMAGE, video_token_id=VIDEO, vision_start_token_id=START, vision_end_token_id=END)


def _qwen_tower(**extra: Any) -> dict[str, Any]:
    return dict(hidden_size=32, num_heads=2, patch_size=14, spatial_merge_size=2, temporal_patch_size=2, **extra)


def qwen2_vl() -> Any:
    tower = dict(_qwen_tower(depth=2, embed_dim=32, mlp_ratio=2), hidden_size=64)
    return hf.Qwen2VLConfig(text_config=dict(TEXT, **_mrope([2, 3, 3])), vision_config=tower, **_qwen_ids())


def qwen2_5_vl() -> Any:
    tower = _qwen_tower(depth=2, intermediate_size=48, out_hidden_size=64, fullatt_block_indexes=[1], window_size=56)
    return hf.Qwen2_5_VLConfig(text_config=dict(TEXT, **_mrope([2, 3, 3])), vision_config=tower, **_qwen_ids())


def qwen3_vl() -> Any:
    tower = _qwen_tower(
        depth=3,
        intermediate_size=48,
        out_hidden_size=64,
        num_position_embeddings=64,
        deepstack_visual_indexes=[0, 1, 2],
    )
    text = dict(TEXT, head_dim=16, **_mrope([4, 2, 2], interleaved=True))
    return hf.Qwen3VLConfig(text_config=text, vision_config=tower, **_qwen_ids())


def qwen3_5() -> Any:
    tower = _qwen_tower(depth=2, intermediate_size=48, out_hidden_size=64, num_position_embeddings=64)
    rope = dict(
        rope_type="default",
        mrope_section=[1, 1, 0],
        rope_theta=10000.0,
        mrope_interleaved=True,
        partial_rotary_factor=0.25,
    )
    text = dict(
        TEXT,
        head_dim=16,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        linear_conv_kernel_dim=4,
        rope_parameters=rope,
        layer_types=["linear_attention", "full_attention"] * 3,
    )
    return hf.Qwen3_5Config(text_config=text, vision_config=tower, **_qwen_ids())


def qwen_spans(size: tuple[int, int, int], in_row: int) -> list[int]:
    return [size[0] * size[1] * size[2] // 4]


def qwen_video(size: tuple[int, int, int]) -> list[int]:
    return [START] + [VIDEO] * (size[0] * size[1] * size[2] // 4) + [END]


def qwen3_video(size: tuple[int, int, int]) -> list[int]:
    """One run per frame, each after a time stamp written as text."""
    frame = [START] + [VIDEO] * (size[1] * size[2] // 4) + [END]
    return [i for t in range(size[0]) for i in (20 + t, 7, *frame)]


def _qwen_patches(rows: list[list[Any]], rng: Generator) -> tuple[Tensor, Tensor]:
    grids = tensor([size for row in rows for size in row])
    return noise(rng, int(grids.prod(1).sum()), 3 * 2 * 14 * 14), grids


def qwen_pixels(rows: list[list[Any]], rng: Generator) -> dict[str, Tensor]:
    return dict(zip(("pixel_values", "image_grid_thw"), _qwen_patches(rows, rng), strict=True))


def qwen_frames(rows: list[list[Any]], rng: Generator) -> dict[str, Tensor]:
    return dict(zip(("pixel_values_videos", "video_grid_thw"), _qwen_patches(rows, rng), strict=True))

"""Configurations, prompts and pixels of tiny models beyond those that run through every test.

As in `tiny`: decoders have 6 layers and width 64, towers 2 or 3 layers. What a release has no class for is left out.
"""

# ruff: noqa: C408

from __future__ import annotations

from typing import Any

import torch
import transformers as hf
from torch import Generator, Tensor

from tests.support import tiny
from tests.support.tiny import END, IMAGE, START, TEXT, VIDEO, _tower, noise
from tests.support.tiny_qwen import _mrope, _qwen_ids, _qwen_tower

FRAMED = dict(image_start_token_id=START, image_end_token_id=END, video_start_token_id=23, video_end_token_id=24)
SIGLIP = dict(_tower(56), vision_use_head=False)


# ---------------------------------------------------------------- one square image
def aya_vision() -> Any:
    return hf.AyaVisionConfig(
        text_config=hf.Cohere2Config(**TEXT, head_dim=16, sliding_window=12, layer_types=tiny.ALTERNATING),
        vision_config=hf.SiglipVisionConfig(**SIGLIP),
        image_token_index=IMAGE,
        downsample_factor=2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )


def cohere2_vision() -> Any:
    return hf.Cohere2VisionConfig(
        text_config=hf.Cohere2Config(**TEXT, head_dim=16, sliding_window=12, layer_types=tiny.ALTERNATING),
        vision_config=hf.SiglipVisionConfig(**SIGLIP),
        image_token_id=IMAGE,
        downsample_factor=2,
        alignment_intermediate_size=48,
    )


def vipllava() -> Any:
    return hf.VipLlavaConfig(
        text_config=hf.LlamaConfig(**TEXT),
        vision_config=hf.CLIPVisionConfig(**_tower(56, projection_dim=32)),
        image_token_index=IMAGE,
        vision_feature_layers=[-2, 0],
        vision_feature_layer=[-2, 0],
    )


def got_ocr2() -> Any:
    tower = dict(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=128, patch_size=16, output_channels=16,
        mlp_dim=48, window_size=4, global_attn_indexes=[1],
    )  # fmt: skip
    return hf.GotOcr2Config(text_config=hf.Qwen2Config(**TEXT), vision_config=tower, image_token_index=IMAGE)


def ovis2() -> Any:
    tower = dict(_tower(56), vocab_size=40, num_visual_indicator_tokens=5, hidden_stride=2)
    return hf.Ovis2Config(
        text_config=hf.Qwen2Config(**TEXT),
        vision_config=tower,
        image_token_id=IMAGE,
        visual_indicator_token_ids=[30, 31, 32, 33, 34],
        vocab_size=TEXT["vocab_size"],
        hidden_size=64,
    )


def janus() -> Any:
    tower = dict(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=14, mlp_ratio=2,
        projection_dim=64, num_image_tokens=16,
    )  # fmt: skip
    codes = dict(
        embed_dim=4, num_embeddings=16, latent_channels=8, base_channels=32, channel_multiplier=[1, 1],
        num_res_blocks=1, num_patches=4, projection_dim=64, image_token_embed_dim=64,
    )  # fmt: skip
    return hf.JanusConfig(
        text_config=hf.LlamaConfig(**TEXT), vision_config=tower, vq_config=codes, image_token_id=IMAGE
    )


def deepseek_vl() -> Any:
    return hf.DeepseekVLConfig(
        text_config=hf.LlamaConfig(**TEXT), vision_config=hf.SiglipVisionConfig(**SIGLIP), image_token_id=IMAGE
    )


def aria() -> Any:
    text = dict(TEXT, moe_num_experts=4, moe_topk=2, moe_num_shared_experts=1)
    return hf.AriaConfig(
        text_config=hf.AriaTextConfig(**text),
        vision_config=dict(model_type="idefics3_vision", **_tower(56)),
        image_token_index=IMAGE,
        projector_patch_to_query_dict={16: 9},
    )


def perception_lm() -> Any:
    """Released towers come from timm, which tests do without."""
    tower = hf.CLIPVisionConfig(**_tower(56, projection_dim=32))
    tower.model_args = dict(embed_dim=32)
    return hf.PerceptionLMConfig(
        text_config=hf.LlamaConfig(**TEXT),
        vision_config=tower,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        projector_pooling_ratio=2,
    )


def perception_pixels(rows: list[list[Any]], rng: Generator) -> dict[str, Tensor]:
    return dict(pixel_values=noise(rng, sum(map(len, rows)), 1, 3, 56, 56))


# ---------------------------------------------------------------- any resolution
def llava_next_video() -> Any:
    return hf.LlavaNextVideoConfig(
        text_config=hf.MistralConfig(**TEXT),
        vision_config=hf.CLIPVisionConfig(**_tower(28, projection_dim=32)),
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        image_grid_pinpoints=[[28, 56], [56, 56]],
        spatial_pool_stride=1,
    )


def clip_frames(rows: list[list[Any]], rng: Generator) -> dict[str, Tensor]:
    frames = [size for row in rows for size in row]
    return dict(pixel_values_videos=noise(rng, len(frames), frames[0], 3, 28, 28))


def lighton_ocr() -> Any:
    return hf.LightOnOcrConfig(
        text_config=hf.Qwen3Config(**TEXT, head_dim=16),
        vision_config=hf.PixtralVisionConfig(**_tower(112)),
        image_token_id=IMAGE,
        spatial_merge_size=2,
    )


def lighton_spans(size: tuple[int, int], in_row: int) -> list[int]:
    return [size[0] * size[1] // 28**2]


# ---------------------------------------------------------------- video of fixed frames
def video_llava() -> Any:
    return hf.VideoLlavaConfig(
        text_config=hf.LlamaConfig(**TEXT),
        vision_config=hf.CLIPVisionConfig(**_tower(28, projection_dim=32)),
        image_token_index=IMAGE,
        video_token_index=VIDEO,
    )


def video_llava_pixels(rows: list[list[Any]], rng: Generator) -> dict[str, Tensor]:
    return dict(pixel_values_images=noise(rng, sum(map(len, rows)), 3, 28, 28))


def video_llava_frames(rows: list[list[Any]], rng: Generator) -> dict[str, Tensor]:
    return dict(pixel_values_videos=noise(rng, sum(map(len, rows)), 8, 3, 28, 28))


# ---------------------------------------------------------------- patches of any grid: size = (t, h, w)
def _glm(prefix: str, mrope: list[int], **tower: Any) -> Any:
    tower = _qwen_tower(depth=2, intermediate_size=48, out_hidden_size=64, image_size=112, **tower)
    rope = dict(_mrope(mrope)["rope_parameters"], partial_rotary_factor=0.5)
    ids = dict(image_token_id=IMAGE, video_token_id=VIDEO, **FRAMED)
    return getattr(hf, prefix + "Config")(text_config=dict(TEXT, rope_parameters=rope), vision_config=tower, **ids)


def glm4v() -> Any:
    return _glm("Glm4v", [2, 1, 1])


def glm46v() -> Any:
    return _glm("Glm46V", [2, 1, 1])


def glm_ocr() -> Any:
    return _glm("GlmOcr", [2, 1, 1])


def ernie4_5_vl_moe() -> Any:
    tower = dict(
        depth=2, hidden_size=32, num_heads=2, patch_size=14, spatial_merge_size=2, intermediate_size=48,
        temporal_merge_size=2,
    )  # fmt: skip
    text = dict(
        TEXT, moe_intermediate_size=[32, 32], moe_k=2, moe_num_experts=4, moe_num_shared_experts=1,
        rope_parameters=dict(rope_type="default", rope_theta=10000.0, mrope_section=[3, 3, 2]),
    )  # fmt: skip
    ids = dict(image_token_id=IMAGE, video_token_id=VIDEO, **FRAMED)
    return hf.Ernie4_5_VLMoeConfig(text_config=text, vision_config=tower, **ids)


def flat_pixels(rows: list[list[Any]], rng: Generator) -> dict[str, Tensor]:
    """Patches without temporal copies."""
    grids = torch.tensor([size for row in rows for size in row])
    return dict(pixel_values=noise(rng, int(grids.prod(1).sum()), 3 * 14 * 14), image_grid_thw=grids)


def flat_frames(rows: list[list[Any]], rng: Generator) -> dict[str, Tensor]:
    out = flat_pixels(rows, rng)
    return dict(pixel_values_videos=out["pixel_values"], video_grid_thw=out["image_grid_thw"])


def ernie_video(size: tuple[int, int, int]) -> list[int]:
    """Two frames share a token."""
    return [23] + [VIDEO] * (size[0] * size[1] * size[2] // 8) + [24]


def image_patches(rows: list[list[Any]], rng: Generator) -> dict[str, Tensor]:
    grids = torch.tensor([size for row in rows for size in row])
    return dict(pixel_values=noise(rng, int(grids.prod(1).sum()), 3, 14, 14), image_grid_thw=grids)


def exaone4_5() -> Any:
    tower = _qwen_tower(
        depth=2, intermediate_size=48, out_hidden_size=64, fullatt_block_indexes=[1], window_size=56,
        num_key_value_heads=1,
    )  # fmt: skip
    text = hf.Exaone4Config(**TEXT, sliding_window=12, layer_types=tiny.ALTERNATING)
    return hf.Exaone4_5_Config(text_config=text, vision_config=tower, image_token_id=IMAGE, video_token_id=VIDEO)


def qwen3_vl_moe() -> Any:
    tower = _qwen_tower(
        depth=3, intermediate_size=48, out_hidden_size=64, num_position_embeddings=64,
        deepstack_visual_indexes=[0, 1, 2],
    )  # fmt: skip
    moe = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32)
    text = dict(TEXT, head_dim=16, **moe, **_mrope([4, 2, 2], interleaved=True))
    return hf.Qwen3VLMoeConfig(text_config=text, vision_config=tower, **_qwen_ids())


_OMNI = dict(vision_start_token_id=START, vision_end_token_id=END, audio_start_token_id=25, audio_end_token_id=26)
_EARS = dict(num_mel_bins=8, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=32, d_model=16)


def qwen2_5_omni() -> Any:
    """The thinker of Qwen2.5-Omni."""
    tower = _qwen_tower(depth=2, intermediate_size=48, out_hidden_size=64, fullatt_block_indexes=[1], window_size=56)
    ids = dict(image_token_index=IMAGE, video_token_index=VIDEO, audio_token_index=tiny.AUDIO, **_OMNI)
    return hf.Qwen2_5OmniThinkerConfig(
        text_config=dict(TEXT, **_mrope([2, 3, 3])), vision_config=tower, audio_config=dict(_EARS, output_dim=64), **ids
    )


def qwen3_omni_moe() -> Any:
    """The thinker of Qwen3-Omni."""
    tower = _qwen_tower(
        depth=3, intermediate_size=48, out_hidden_size=64, num_position_embeddings=64,
        deepstack_visual_indexes=[0, 1, 2],
    )  # fmt: skip
    moe = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32)
    ids = dict(image_token_id=IMAGE, video_token_id=VIDEO, audio_token_id=tiny.AUDIO, **_OMNI)
    ears = dict(_EARS, output_dim=64, downsample_hidden_size=8)
    return hf.Qwen3OmniMoeThinkerConfig(
        text_config=dict(TEXT, head_dim=16, **moe, **_mrope([4, 2, 2], interleaved=True)),
        vision_config=tower,
        audio_config=ears,
        **ids,
    )


def paddleocr_vl() -> Any:
    tower = dict(_tower(112), spatial_merge_size=2)
    text = dict(TEXT, head_dim=16, **_mrope([2, 3, 3]))
    return hf.PaddleOCRVLConfig(text_config=text, vision_config=tower, **_qwen_ids())


def video_llama_3() -> Any:
    tower = dict(_tower(56))
    tower.pop("image_size")
    return hf.VideoLlama3Config(
        text_config=hf.Qwen2Config(**TEXT), vision_config=tower, image_token_id=IMAGE, video_token_id=VIDEO
    )


def video_llama_pixels(rows: list[list[Any]], rng: Generator) -> dict[str, Tensor]:
    out = flat_pixels(rows, rng)
    return dict(out, image_merge_sizes=torch.full((len(out["image_grid_thw"]),), 2))


def video_llama_frames(rows: list[list[Any]], rng: Generator) -> dict[str, Tensor]:
    out = flat_pixels(rows, rng)
    grids = out["image_grid_thw"]
    return dict(
        pixel_values_videos=out["pixel_values"],
        video_grid_thw=grids,
        video_merge_sizes=torch.full((len(grids),), 2),
        video_compression_mask=torch.ones(int(grids.prod(1).sum()) // 4, dtype=torch.bool),
    )

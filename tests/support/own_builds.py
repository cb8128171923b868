"""Tiny models that are built in ways of their own: heads inside, experts, several streams of a row, packed patches.

As in `tiny`: decoders have 6 layers and width 64, towers 2 or 3 layers. What a release has no class for is left out.
"""

# ruff: noqa: C408

from __future__ import annotations

from typing import Any

import torch
import transformers as hf
from torch import Generator, Tensor

from tests.support import tiny, tiny_qwen
from tests.support.more import SIGLIP, image_patches
from tests.support.tiny import END, IMAGE, START, TEXT, VIDEO, _tower, noise
from tests.support.tiny_qwen import _qwen_ids


def llama4() -> Any:
    """Chunks shorter than the prompts, experts, and layers without rotation whose queries grow with their place."""
    text = dict(
        TEXT, head_dim=16, intermediate_size_mlp=96, num_local_experts=2, attention_chunk_size=24, floor_scale=8,
        attn_scale=0.5, no_rope_layer_interval=3,
    )  # fmt: skip
    tower = dict(_tower(56), vision_output_dim=32, projector_input_dim=32, projector_output_dim=32)
    tower["intermediate_size"] = 128
    return hf.Llama4Config(text_config=text, vision_config=tower, image_token_index=IMAGE, boi_token_index=START)


def llama4_outputs(model: Any) -> None:
    """Release 5.24.0 asks its language model's output for images, which it has none of, and fails in every forward."""
    model.language_model.register_forward_hook(_with_image_outputs)


def _with_image_outputs(module: Any, args: Any, out: Any) -> None:
    if not hasattr(out, "image_outputs"):
        object.__setattr__(out, "image_outputs", None)


def molmo2() -> Any:
    heads = dict(num_attention_heads=2, num_key_value_heads=2, head_dim=16)
    tower = dict(_tower(56), **heads, num_hidden_layers=3)
    tower["image_size"] = [56, 56]
    adapter = dict(heads, vision_feature_layer=[-1, 0], hidden_size=32, intermediate_size=48, text_hidden_size=64)
    return hf.Molmo2Config(
        text_config=dict(TEXT, head_dim=16, additional_vocab_size=8, rope_scaling_layers=[0, 2, 4]),
        vision_config=tower,
        adapter_config=adapter,
        image_patch_id=IMAGE,
        image_start_token_id=START,
        image_end_token_id=END,
    )


def molmo2_spans(size: tuple[int, int], in_row: int) -> list[int]:
    """An overview of 2x2 cells, then the crops as one grid."""
    return [4, size[0] * size[1]]


def _molmo2_crops(grids: list[tuple[int, ...]], rng: Generator) -> tuple[Tensor, Tensor]:
    """Pixels of enough crops of 16 patches, and for every token four patches of them, the last one missing at times."""
    tokens = sum(a * b for grid in grids for a, b in zip(grid[::2], grid[1::2], strict=True))
    crops = tokens // 4 + 1
    pooled = torch.randint(0, crops * 16, (tokens, 4), generator=rng)
    pooled[::5, 3] = -1
    return noise(rng, crops, 16, 3 * 14 * 14), pooled


def molmo2_pixels(rows: list[list[Any]], rng: Generator) -> dict[str, Tensor]:
    grids = [(2, 2, *size) for row in rows for size in row]
    pixels, pooled = _molmo2_crops(grids, rng)
    return dict(pixel_values=pixels, image_token_pooling=pooled, image_grids=torch.tensor(grids))


def molmo2_video(size: tuple[int, int, int]) -> list[int]:
    """Frames of one video, each between tokens of its own; images and videos share a placeholder."""
    frames, h, w = size
    return [i for t in range(frames) for i in (20 + t, *[IMAGE] * (h * w), 25)]


def molmo2_frames(rows: list[list[Any]], rng: Generator) -> dict[str, Tensor]:
    sizes = [size for row in rows for size in row]
    pixels, pooled = _molmo2_crops([(t * h, w) for t, h, w in sizes], rng)
    return dict(pixel_values_videos=pixels, video_token_pooling=pooled, video_grids=torch.tensor(sizes))


def idefics2() -> Any:
    perceiver = dict(
        resampler_n_latents=9, resampler_depth=1, resampler_n_heads=2, resampler_head_dim=16, num_key_value_heads=2,
        hidden_size=64,
    )  # fmt: skip
    return hf.Idefics2Config(
        text_config=hf.MistralConfig(**TEXT), vision_config=dict(_tower(56)), perceiver_config=perceiver,
        image_token_id=IMAGE,
    )  # fmt: skip


def idefics2_pixels(rows: list[list[Any]], rng: Generator) -> dict[str, Tensor]:
    pixels = torch.zeros(len(rows), max(map(len, rows)), 3, 56, 56)
    for row, images in zip(pixels, rows, strict=True):
        row[: len(images)] = noise(rng, len(images), 3, 56, 56)
    return dict(pixel_values=pixels, pixel_attention_mask=(pixels[:, :, 0] != 0))


def gemma3n() -> Any:
    """Four streams of every row, and two layers that share keys; released towers come from timm."""
    text = dict(
        TEXT, head_dim=16, sliding_window=12, layer_types=tiny.ALTERNATING, num_kv_shared_layers=2, laurel_rank=4,
        hidden_size_per_layer_input=8, vocab_size_per_layer_input=TEXT["vocab_size"], altup_num_inputs=4,
        activation_sparsity_pattern=[0.0] * 6,
    )  # fmt: skip
    tower = hf.SiglipVisionConfig(**SIGLIP, vocab_size=8, vocab_offset=TEXT["vocab_size"], rms_norm_eps=1e-6)
    ears = dict(
        hidden_size=16, vocab_size=8, vocab_offset=TEXT["vocab_size"] + 8, conf_num_attention_heads=2,
        conf_num_hidden_layers=1, sscp_conv_channel_size=(4, 4), input_feat_size=16,
    )  # fmt: skip
    config = hf.Gemma3nConfig(
        text_config=text, audio_config=ears, image_token_id=IMAGE, audio_token_id=tiny.AUDIO, boi_token_id=START,
        eoi_token_id=END, vision_soft_tokens_per_image=16,
    )  # fmt: skip
    object.__setattr__(config, "vision_config", tower)  # the config takes timm's alone
    return config


def kimi_k25() -> Any:
    """Attention of low rank and experts, as in DeepSeek-V3."""
    text = dict(
        TEXT, num_key_value_heads=4, q_lora_rank=24, kv_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=8,
        v_head_dim=16, n_routed_experts=4, n_group=2, topk_group=1, num_experts_per_tok=2, moe_intermediate_size=32,
        first_k_dense_replace=1, n_shared_experts=1,
    )  # fmt: skip
    tower = dict(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, patch_size=14,
        pos_emb_height=8, pos_emb_width=8,
    )  # fmt: skip
    return hf.Kimi_K25Config(
        text_config=dict(text, model_type="deepseek_v3"), vision_config=tower, projection_hidden_size=32,
        **_qwen_ids(),
    )  # fmt: skip


def kimi_video(size: tuple[int, int, int]) -> list[int]:
    """The frames of a clip are averaged."""
    return [START] + [VIDEO] * (size[1] * size[2] // 4) + [END]


def clip_patches(rows: list[list[Any]], rng: Generator) -> dict[str, Tensor]:
    out = image_patches(rows, rng)
    return dict(pixel_values_videos=out["pixel_values"], video_grid_thw=out["image_grid_thw"])


def _minicpm(name: str, **ids: int) -> Any:
    text = dict(tiny_qwen.qwen3_5().text_config.to_dict(), model_type="qwen3_5_text")
    tower = dict(_tower(112), insert_layer_id=0)
    return getattr(hf, name)(
        text_config=text, vision_config=tower, insert_layer_id=0, image_token_id=IMAGE, video_token_id=VIDEO, **ids
    )


def minicpmv4_6() -> Any:
    return _minicpm("MiniCPMV4_6Config")


def minicpmv4_7() -> Any:
    return _minicpm(
        "MiniCPMV4_7Config", image_start_id=START, image_end_id=END, slice_start_id=27, slice_end_id=28, newline_id=29
    )


def _packed(sizes: list[tuple[int, int]], rng: Generator) -> Tensor:
    """Patches of all images in one row, as NaViT packs them."""
    return noise(rng, 1, 3, 14, 14 * sum(h * w for h, w in sizes))


def minicpm_pixels(rows: list[list[Any]], rng: Generator) -> dict[str, Tensor]:
    sizes = [size for row in rows for size in row]
    return dict(pixel_values=_packed(sizes, rng), target_sizes=torch.tensor(sizes))


def minicpm_spans(size: tuple[int, int], in_row: int) -> list[int]:
    """Two by two patches are joined twice."""
    return [size[0] * size[1] // 16]


def minicpm_video(size: tuple[int, int, int]) -> list[int]:
    frames, h, w = size
    return [i for _ in range(frames) for i in (START, *[VIDEO] * (h * w // 16), END)]


def minicpm_frames(rows: list[list[Any]], rng: Generator) -> dict[str, Tensor]:
    sizes = [(h, w) for row in rows for t, h, w in row for _ in range(t)]
    return dict(pixel_values_videos=_packed(sizes, rng), target_sizes_videos=torch.tensor(sizes))


# ---------------------------------------------------------------- images enter inside the decoder, or in `generate`
def phi4_multimodal() -> Any:
    tower = dict(_tower(56), crop_size=56, image_token_id=IMAGE, feature_layer=-2)
    ears = dict(
        hidden_size=16, intermediate_size=16, num_blocks=1, num_attention_heads=2, ext_pw_out_channel=16,
        nemo_conv_channels=4, input_size=16, time_reduction=2, audio_token_id=tiny.AUDIO,
    )  # fmt: skip
    return hf.Phi4MultimodalConfig(**TEXT, vision_config=tower, audio_config=ears)


def phi4_tower(model: Any) -> None:
    """Releases attend in both directions under eager attention, and backwards only under sdpa."""
    for layer in model.model.embed_tokens_extend.image_embed.img_processor.encoder.layers:
        layer.self_attn.is_causal = False


def phi4_spans(size: tuple[int, int], in_row: int) -> list[int]:
    """Crops of 2x2 cells, a row end after each row and one token more; then the overview, likewise."""
    h, w = size
    return [2 * h * (2 * w + 1) + 1, 6]


def phi4_pixels(rows: list[list[Any]], rng: Generator) -> dict[str, Tensor]:
    sizes = torch.tensor([size for row in rows for size in row])
    return dict(
        image_pixel_values=noise(rng, len(sizes), 3, 3, 56, 56),
        image_sizes=sizes * 56,
        image_attention_mask=torch.ones(len(sizes), 3, 4, 4),
    )


def _blip(kind: str, text: Any) -> Any:
    """Nine queries; a Q-Former of two layers."""
    tower = dict(_tower(56))
    bert = dict(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, encoder_hidden_size=32,
        vocab_size=TEXT["vocab_size"],
    )  # fmt: skip
    return getattr(hf, kind + "Config")(
        text_config=text, vision_config=tower, qformer_config=bert, num_query_tokens=9, image_token_index=IMAGE,
        image_token_id=IMAGE,
    )  # fmt: skip


def blip_2() -> Any:
    """Its language model has learned positions."""
    opt = dict(TEXT, ffn_dim=96, word_embed_proj_dim=64)
    return _blip("Blip2", hf.OPTConfig(**{k: v for k, v in opt.items() if k not in ("num_key_value_heads",)}))


def instructblip() -> Any:
    return _blip("InstructBlip", hf.LlamaConfig(**TEXT))


def instructblip_pixels(rows: list[list[Any]], rng: Generator) -> dict[str, Tensor]:
    images = sum(map(len, rows))
    return dict(
        pixel_values=noise(rng, images, 3, 56, 56),
        qformer_input_ids=torch.randint(3, 90, (images, 4), generator=rng),
        qformer_attention_mask=torch.ones(images, 4, dtype=torch.long),
    )

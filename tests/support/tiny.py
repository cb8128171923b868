"""Configurations, prompt layouts and pixels of the tiny random models: one small group of functions per family.

Every decoder has 6 layers, width 64, 4 heads and 2 key/value heads; every tower is 2 or 3 layers deep.
"""

# ruff: noqa: C408

from __future__ import annotations

from typing import Any

import torch
import transformers as hf
from torch import Generator, Tensor

PAD, BOS, EOS, VOCAB = 0, 1, 2, 400
TEXT_IDS = (3, 380)  # half-open range of ordinary text ids
IMAGE, VIDEO, START, END, BREAK, AUDIO = 390, 391, 392, 393, 394, 395
SPECIAL = [EOS, IMAGE, VIDEO, START, END, BREAK, AUDIO]

V5 = int(hf.__version__.split(".")[0]) >= 5
TEXT: dict[str, Any] = dict(
    hidden_size=64,
    num_hidden_layers=6,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=96,
    vocab_size=VOCAB,
    max_position_embeddings=2048,
    pad_token_id=PAD,
    bos_token_id=BOS,
    eos_token_id=EOS,
)
ALTERNATING = ["sliding_attention", "full_attention"] * 3


def _tower(size: int, **extra: Any) -> dict[str, Any]:
    return dict(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=size,
        patch_size=14,
        **extra,
    )


def noise(rng: Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=rng)


# ---------------------------------------------------------------- towers with one square input: size is unused
def llava() -> Any:
    tower = hf.CLIPVisionConfig(**_tower(56, projection_dim=32))
    return hf.LlavaConfig(
        text_config=hf.LlamaConfig(**TEXT),
        vision_config=tower,
        image_token_index=IMAGE,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )


def gemma3() -> Any:
    text = hf.Gemma3TextConfig(
        **TEXT, head_dim=16, sliding_window=12, query_pre_attn_scalar=16, layer_types=ALTERNATING
    )
    tower = hf.SiglipVisionConfig(**_tower(84, vision_use_head=False))
    return hf.Gemma3Config(
        text_config=text,
        vision_config=tower,
        image_token_index=IMAGE,
        mm_tokens_per_image=9,
        boi_token_index=START,
        eoi_token_index=END,
    )


def paligemma() -> Any:
    tower = hf.SiglipVisionConfig(**_tower(56, vision_use_head=False))
    return hf.PaliGemmaConfig(
        text_config=hf.GemmaConfig(**TEXT, head_dim=16), vision_config=tower, image_token_index=IMAGE, projection_dim=64
    )


def fast_vlm() -> Any:
    tower = hf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16, 32], depths=[1, 1, 1], layer_type="basic")
    tower.hidden_size = 32
    return hf.FastVlmConfig(text_config=hf.Qwen2Config(**TEXT), vision_config=tower, image_token_id=IMAGE)


def square_pixels(side: int) -> Any:
    def pixels(rows: list[list[Any]], rng: Generator) -> dict[str, Tensor]:
        return dict(pixel_values=noise(rng, sum(map(len, rows)), 3, side, side))

    return pixels


# ---------------------------------------------------------------- tiles: size = (height, width) or the number of tiles
def llava_next() -> Any:
    tower = hf.CLIPVisionConfig(**_tower(28, projection_dim=32))
    return hf.LlavaNextConfig(
        text_config=hf.MistralConfig(**TEXT),
        vision_config=tower,
        image_token_index=IMAGE,
        image_grid_pinpoints=[[28, 56], [56, 56]],
    )


def llava_next_spans(size: tuple[int, int], in_row: int) -> list[int]:
    """Overview of 2x2, then the un-padded grid with one newline token per grid row."""
    return [4, {(56, 56): 16 + 4, (28, 56): 8 + 2, (56, 28): 8 + 4}[size]]


def llava_onevision() -> Any:
    tower = hf.SiglipVisionConfig(**_tower(42, vision_use_head=False))
    return hf.LlavaOnevisionConfig(
        text_config=hf.Qwen2Config(**TEXT),
        vision_config=tower,
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        image_grid_pinpoints=[[42, 84], [84, 42]],
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
    )


def onevision_spans(size: tuple[int, int], in_row: int) -> list[int]:
    """Alone in its row an image is overview, grid and newlines; several are one tile and one newline each."""
    return [9, {(42, 84): 18 + 3, (84, 42): 18 + 6}[size]] if in_row == 1 else [9 + 1]


def onevision_video(frames: int) -> list[int]:
    return [VIDEO] * (4 * frames + 1)


def onevision_frames(rows: list[list[Any]], rng: Generator) -> dict[str, Tensor]:
    frames = [size for row in rows for size in row]
    return dict(pixel_values_videos=noise(rng, len(frames), frames[0], 3, 42, 42))


def tiled_pixels(side: int, tiles: int) -> Any:
    def pixels(rows: list[list[Any]], rng: Generator) -> dict[str, Tensor]:
        sizes = [size for row in rows for size in row]
        out = dict(pixel_values=noise(rng, len(sizes), tiles, 3, side, side), image_sizes=torch.tensor(sizes))
        return dict(out, batch_num_images=torch.tensor([len(row) for row in rows])) if side == 42 else out

    return pixels


def internvl() -> Any:
    tower = hf.InternVLVisionConfig(
        **dict(_tower(42), image_size=[42, 42], patch_size=[7, 7]), layer_scale_init_value=0.5
    )
    return hf.InternVLConfig(
        text_config=hf.Qwen2Config(**TEXT), vision_config=tower, image_token_id=IMAGE, downsample_ratio=0.5
    )


def tile_spans(tiles: int, in_row: int) -> list[int]:
    return [9] * tiles


def internvl_pixels(rows: list[list[Any]], rng: Generator) -> dict[str, Tensor]:
    return dict(pixel_values=noise(rng, sum(map(sum, rows)), 3, 42, 42))


def _idefics(prefix: str, module: Any) -> Any:
    tower = getattr(module, prefix + "VisionConfig")(**dict(_tower(42), patch_size=7))
    return getattr(hf, prefix + "Config")(
        text_config=hf.LlamaConfig(**TEXT), vision_config=tower, image_token_id=IMAGE, scale_factor=2, pad_token_id=PAD
    )


def idefics3() -> Any:
    return _idefics("Idefics3", hf.models.idefics3)


def smolvlm() -> Any:
    return _idefics("SmolVLM", hf.models.smolvlm)


def idefics_image(tiles: int, in_row: int) -> list[int]:
    """One run of 9 per tile, each after its place written as text."""
    return [i for t in range(tiles) for i in [START, 30 + t] + [IMAGE] * 9] + [START]


def idefics_pixels(rows: list[list[Any]], rng: Generator) -> dict[str, Tensor]:
    pixels = torch.zeros(len(rows), max(map(sum, rows)), 3, 42, 42)
    for row, tiles in zip(pixels, map(sum, rows), strict=True):
        row[:tiles] = noise(rng, tiles, 3, 42, 42)
    return dict(pixel_values=pixels, pixel_attention_mask=(pixels[:, :, 0] != 0))


# ---------------------------------------------------------------- native resolution: size = (h, w) in pixels or patches
def mistral3() -> Any:
    tower = hf.PixtralVisionConfig(**_tower(112))
    return hf.Mistral3Config(
        text_config=hf.MistralConfig(**TEXT, head_dim=16),
        vision_config=tower,
        image_token_index=IMAGE,
        spatial_merge_size=2,
        vision_feature_layer=-1,
    )


def mistral3_image(size: tuple[int, int], in_row: int) -> list[int]:
    """A break token ends every row of the grid, so one image is many runs."""
    row = [IMAGE] * (size[1] // 28) + [BREAK]
    return [*(row * (size[0] // 28))[:-1], END]


def mistral3_pixels(rows: list[list[Any]], rng: Generator) -> dict[str, Tensor]:
    sizes = torch.tensor([size for row in rows for size in row])
    return dict(pixel_values=noise(rng, len(sizes), 3, *sizes.amax(0).tolist()), image_sizes=sizes)


def lfm2_vl() -> Any:
    text = hf.Lfm2Config(
        **TEXT, layer_types=["conv", "full_attention"] * 3, block_ff_dim=96, block_auto_adjust_ff_dim=False
    )
    tower = dict(_tower(56, num_patches=64, vision_use_head=False))
    tower.pop("image_size")
    return hf.Lfm2VlConfig(
        text_config=text, vision_config=hf.Siglip2VisionConfig(**tower), image_token_id=IMAGE, downsample_factor=2
    )


def lfm2_spans(size: tuple[int, int], in_row: int) -> list[int]:
    return [size[0] * size[1] // 4]


def lfm2_pixels(rows: list[list[Any]], rng: Generator) -> dict[str, Tensor]:
    sizes = [size for row in rows for size in row]
    used = torch.tensor([[int(i < h * w) for i in range(64)] for h, w in sizes])
    return dict(
        pixel_values=noise(rng, len(sizes), 64, 3 * 14 * 14),
        spatial_shapes=torch.tensor(sizes),
        pixel_attention_mask=used,
    )


def gemma4() -> Any:
    text = hf.Gemma4TextConfig(
        **TEXT,
        head_dim=16,
        global_head_dim=16,
        sliding_window=12,
        layer_types=ALTERNATING,
        num_kv_shared_layers=2,
        hidden_size_per_layer_input=8,
        vocab_size_per_layer_input=VOCAB,
        num_global_key_value_heads=None,
        use_bidirectional_attention="vision",
    )
    tower = hf.Gemma4VisionConfig(
        **_tower(56), num_key_value_heads=2, head_dim=16, pooling_kernel_size=2, position_embedding_size=64
    )
    return hf.Gemma4Config(
        text_config=text,
        vision_config=tower,
        audio_config=None,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        boi_token_id=START,
        eoi_token_id=END,
        audio_token_id=AUDIO,
    )


def gemma4_pixels(rows: list[list[Any]], rng: Generator) -> dict[str, Tensor]:
    count, place = sum(map(len, rows)), torch.cartesian_prod(torch.arange(8), torch.arange(8)).flip(-1)
    return dict(pixel_values=noise(rng, count, 64, 3 * 14 * 14), image_position_ids=place.repeat(count, 1, 1))

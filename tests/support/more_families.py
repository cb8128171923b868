"""Families beyond those that every test runs through: one row each, for `tests/families/test_more_families.py`."""

# ruff: noqa: C408

from __future__ import annotations

from typing import Any

from tests.support import more, own_builds, tiny, tiny_qwen
from tests.support.families import _QWEN, Family, _count
from tests.support.tiny import VIDEO

_STILL: dict[str, Any] = {
    name: value for name, value in _QWEN.items() if name not in ("videos", "video_layout", "frames")
}
_SQUARE: dict[str, Any] = dict(pixels=tiny.square_pixels(56))

MORE = {
    row.name: row
    for row in (
        Family("aya_vision", "AyaVision", more.aya_vision, **_SQUARE, spans=_count(4)),
        Family("cohere2_vision", "Cohere2Vision", more.cohere2_vision, **_SQUARE, spans=_count(4)),
        Family("vipllava", "VipLlava", more.vipllava, **_SQUARE, spans=_count(16)),
        Family("got_ocr2", "GotOcr2", more.got_ocr2, tiny.square_pixels(128), spans=_count(4)),
        Family("ovis2", "Ovis2", more.ovis2, **_SQUARE, spans=_count(4)),
        Family("janus", "Janus", more.janus, **_SQUARE, spans=_count(16)),
        Family("deepseek_vl", "DeepseekVL", more.deepseek_vl, **_SQUARE, spans=_count(16)),
        Family("aria", "Aria", more.aria, **_SQUARE, spans=_count(9)),
        Family("perception_lm", "PerceptionLM", more.perception_lm, more.perception_pixels, spans=_count(4)),
        Family(
            "llava_next_video",
            "LlavaNextVideo",
            more.llava_next_video,
            tiny.tiled_pixels(28, 5),
            images=((56, 56), (28, 56), (56, 28)),
            spans=tiny.llava_next_spans,
            videos=(2,),
            video_layout=lambda frames: [VIDEO] * (4 * frames),
            frames=more.clip_frames,
        ),
        Family(
            "video_llava",
            "VideoLlava",
            more.video_llava,
            more.video_llava_pixels,
            spans=_count(4),
            videos=(8,),
            video_layout=lambda frames: [VIDEO] * (5 * frames),
            frames=more.video_llava_frames,
        ),
        Family(
            "lighton_ocr",
            "LightOnOcr",
            more.lighton_ocr,
            tiny.mistral3_pixels,
            images=((112, 112), (56, 112), (84, 56)),
            spans=more.lighton_spans,
        ),
        Family("glm4v", "Glm4v", more.glm4v, **_STILL),
        Family("glm46v", "Glm46V", more.glm46v, **_STILL),
        Family("glm_ocr", "GlmOcr", more.glm_ocr, **_STILL),
        Family(
            "ernie4_5_vl_moe",
            "Ernie4_5_VLMoe",
            more.ernie4_5_vl_moe,
            **dict(
                _QWEN,
                pixels=more.flat_pixels,
                frames=more.flat_frames,
                videos=((4, 4, 6), (4, 4, 4)),
                video_layout=more.ernie_video,
            ),
        ),
        Family("exaone4_5", "Exaone4_5_", more.exaone4_5, **dict(_QWEN, rope="1d")),
        Family(
            "qwen3_vl_moe",
            "Qwen3VLMoe",
            more.qwen3_vl_moe,
            **dict(_QWEN, video_layout=tiny_qwen.qwen3_video),
            example="Qwen/Qwen3-VL-30B-A3B-Instruct",
        ),
        Family("qwen2_5_omni", "Qwen2_5OmniThinker", more.qwen2_5_omni, **_STILL),
        Family("qwen3_omni_moe", "Qwen3OmniMoeThinker", more.qwen3_omni_moe, **_STILL),
        Family("paddleocr_vl", "PaddleOCRVL", more.paddleocr_vl, **dict(_STILL, pixels=more.image_patches)),
        Family(
            "video_llama_3",
            "VideoLlama3",
            more.video_llama_3,
            **dict(_QWEN, pixels=more.video_llama_pixels, frames=more.video_llama_frames, rope="1d"),
        ),
        Family("llama4", "Llama4", own_builds.llama4, **_SQUARE, spans=_count(4), mend=own_builds.llama4_outputs),
        Family(
            "molmo2",
            "Molmo2",
            own_builds.molmo2,
            own_builds.molmo2_pixels,
            images=((3, 4), (2, 3), (4, 2)),
            spans=own_builds.molmo2_spans,
            videos=((3, 2, 3),),
            video_layout=own_builds.molmo2_video,
            frames=own_builds.molmo2_frames,
        ),
        Family("idefics2", "Idefics2", own_builds.idefics2, own_builds.idefics2_pixels, spans=_count(9)),
        Family(
            "phi4_multimodal",
            "Phi4Multimodal",
            own_builds.phi4_multimodal,
            own_builds.phi4_pixels,
            images=((1, 2), (1, 1), (2, 1)),
            spans=own_builds.phi4_spans,
            mend=own_builds.phi4_tower,
        ),
        Family("blip_2", "Blip2", own_builds.blip_2, **_SQUARE, spans=_count(9)),
        Family(
            "instructblip", "InstructBlip", own_builds.instructblip, own_builds.instructblip_pixels, spans=_count(9)
        ),
        Family("gemma3n", "Gemma3n", own_builds.gemma3n, **_SQUARE, spans=_count(16), prune_layers=(0, 1, 2)),
        Family(
            "kimi_k25",
            "Kimi_K25",
            own_builds.kimi_k25,
            **dict(
                _QWEN,
                pixels=more.image_patches,
                frames=own_builds.clip_patches,
                videos=((2, 4, 6), (3, 4, 4)),
                video_layout=own_builds.kimi_video,
                rope="1d",
            ),
        ),
        *(
            Family(
                name,
                model,
                config,
                own_builds.minicpm_pixels,
                images=((8, 8), (8, 12), (4, 16)),
                spans=own_builds.minicpm_spans,
                framed=True,
                videos=((2, 8, 8),),
                video_layout=own_builds.minicpm_video,
                frames=own_builds.minicpm_frames,
                rope="mrope",
                hybrid=True,
                centred_norms=True,
            )
            for name, model, config in (
                ("minicpmv4_6", "MiniCPMV4_6", own_builds.minicpmv4_6),
                ("minicpmv4_7", "MiniCPMV4_7", own_builds.minicpmv4_7),
            )
        ),
    )
    if row.model_class is not None
}

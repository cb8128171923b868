"""Which classes of vLLM are served. What a family's tokens and towers are like is said in `vlmopt.families`."""

from __future__ import annotations

from typing import Any

from vlmopt.families import Family, family_of

# Architecture -> module below vllm.model_executor.models, class.
ARCHITECTURES = {
    "Qwen2VLForConditionalGeneration": ("qwen2_vl", "Qwen2VLForConditionalGeneration"),
    "Qwen2_5_VLForConditionalGeneration": ("qwen2_5_vl", "Qwen2_5_VLForConditionalGeneration"),
    "Qwen3VLForConditionalGeneration": ("qwen3_vl", "Qwen3VLForConditionalGeneration"),
    "Qwen3VLMoeForConditionalGeneration": ("qwen3_vl_moe", "Qwen3VLMoeForConditionalGeneration"),
    "Qwen3_5ForConditionalGeneration": ("qwen3_5", "Qwen3_5ForConditionalGeneration"),
    "Qwen3_5MoeForConditionalGeneration": ("qwen3_5", "Qwen3_5MoeForConditionalGeneration"),
    "LlavaForConditionalGeneration": ("llava", "LlavaForConditionalGeneration"),
    "LlavaOnevisionForConditionalGeneration": ("llava_onevision", "LlavaOnevisionForConditionalGeneration"),
    "InternVLForConditionalGeneration": ("interns1", "InternS1ForConditionalGeneration"),
}
TOWERS = ("clip_vision_model", "siglip_vision_model", "internvl_vision")  # where a family has a choice of towers

POOLED = {("llava_onevision", "video")}  # tokens are means of several rows of the projector


def described(config: Any) -> Family:
    """Find the family of a model's config.

    Raises:
        ValueError: its tower gives rows that vlmopt knows nothing of, such as Pixtral's behind LLaVA's architecture.
    """
    family, tower = family_of(config), config.vision_config.model_type
    if not family.described or not (family.patch_grid or tower in TOWERS):
        raise ValueError(f"{config.model_type} with the tower {tower} is not served by vlmopt")
    return family


def part(model: Any, path: str) -> Any:
    """Find a module by its path in `vlmopt.families`; vLLM's models lack the outer `model.`."""
    return model.get_submodule(path.removeprefix("model."))

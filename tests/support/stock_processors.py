"""The stock processor of every family with a small tokenizer, to count the visual tokens it makes of a image."""

# ruff: noqa: C408

from __future__ import annotations

import inspect
from typing import Any

import transformers as hf
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from vlmopt.checkpoints.processor import without_video

NAMED = dict(
    image_token="<image>", video_token="<video>", boi_token="<boi>", eoi_token="<eoi>", audio_token="<audio>",
    boa_token="<boa>", eoa_token="<eoa>", start_image_token="<img>", end_image_token="</img>",
    context_image_token="<image>", fake_image_token="<fake_token_around_image>", global_image_token="<global-img>",
    end_of_utterance_token="<end_of_utterance>",
)  # fmt: skip
SPECIAL = [
    "<pad>", "<eos>", "<image>", "<video>", "<boi>", "<eoi>", "<img>", "</img>", "[IMG]", "[IMG_BREAK]", "[IMG_END]",
    "<fake_token_around_image>", "<global-img>", "<end_of_utterance>", "<|image_pad|>", "<|video_pad|>",
    "<|vision_start|>", "<|vision_end|>", "<audio>", "<boa>", "<eoa>",
    *(f"<row_{r}_col_{c}>" for r in range(1, 13) for c in range(1, 13)),
]  # fmt: skip


def tokenizer() -> Any:
    """Bytes, the marks of every family, and a blank line as one token, as in the published ones."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        ["\n\n" * 9], trainers.BpeTrainer(vocab_size=900, special_tokens=SPECIAL, initial_alphabet=alphabet)
    )
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token="<pad>", bos_token="<eos>", eos_token="<eos>", extra_special_tokens=NAMED,
        model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip


def processor(config: Any, settings: dict[str, Any], **own: Any) -> Any:
    """The processor of a config's family with PIL alone; `settings` go to the image processor."""
    images = getattr(hf, NEEDED[config.model_type])(**settings)
    if config.model_type == "smolvlm":  # its processor asks for a package that writes numbers of video frames
        from transformers import Idefics3Processor as Stock
    elif "video_processor" in inspect.signature(hf.PROCESSOR_MAPPING[type(config)].__init__).parameters:
        Stock = without_video(config)
    else:
        Stock = hf.PROCESSOR_MAPPING[type(config)]
    return Stock(image_processor=images, tokenizer=tokenizer(), **own)


def prompt(images: int, mark: str = "") -> str:
    return mark * images + "what?"


def made(processor: Any, *sizes: tuple[int, int]) -> Any:
    """Input ids [n] of a prompt with images of these (height, width)."""
    images = [Image.new("RGB", (w, h)) for h, w in sizes]
    mark = "<boi>" if "Gemma3" in type(processor).__name__ else "<image>"
    return processor(images=[images], text=[prompt(len(images), mark)], return_tensors="pt")["input_ids"][0]


def counted(processor: Any, *sizes: tuple[int, int]) -> int:
    """Visual tokens among them."""
    return int((made(processor, *sizes) == processor.tokenizer.convert_tokens_to_ids("<image>")).sum())


def length(processor: Any, *sizes: tuple[int, int]) -> int:
    return len(made(processor, *sizes))


def encoded(images: Any, size: tuple[int, int]) -> Any:
    """What an image processor makes of one image of this (height, width)."""
    return images(images=[Image.new("RGB", size[::-1])], return_tensors="pt")


KINDS = {
    "qwen2_vl": "Qwen2VL",
    "qwen2_5_vl": "Qwen2VL",
    "qwen3_vl": "Qwen2VL",
    "llava": "CLIP",
    "llava_next": "LlavaNext",
    "llava_onevision": "LlavaOnevision",
    "internvl": "GotOcr2",
    "idefics3": "Idefics3",
    "smolvlm": "SmolVLM",
    "gemma3": "Gemma3",
    "paligemma": "Siglip",
}
NEEDED = {name: f"{kind}ImageProcessorPil" for name, kind in KINDS.items()}

"""Turn a question with images or a video into model inputs, for any processor with a chat template or without."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import nn

from .families import family_of
from .frames import Video, video_inputs
from .offload import device_of

NAMED = re.compile(r"<image (\d{1,4})>")  # as MMMU writes where an image stands, counted from 1


def image_prompt(processor: Any, question: str, images: Sequence[Image.Image]) -> dict[str, Any]:
    """Make the inputs of one user turn: the images, then the question (text alone where there is no image)."""
    text = chat(processor, "image", len(images), question)
    return dict(processor(text=[text], images=list(images) or None, return_tensors="pt"))


def video_prompt(processor: Any, model: Any, question: str, *videos: Video) -> dict[str, Any]:
    """Make the inputs of one user turn: the videos, one or more, then the question.

    Raises ValueError for a family whose frames only its own video processor can prepare, when that is missing.
    """
    kind, family = model.config.model_type, family_of(model.config)
    text = chat(processor, "video", len(videos), question)
    if not family.patch_grid:
        if getattr(processor, "video_processor", None) is None:
            raise ValueError(f"video for model_type={kind!r} needs its own video processor, and that torchvision")
        return dict(processor(text=[text], videos=[video.frames.byte() for video in videos], return_tensors="pt"))
    images = processor.image_processor
    made = [
        video_inputs(
            video.frames,
            patch_size=images.patch_size,
            temporal_patch_size=images.temporal_patch_size,
            merge_size=images.merge_size,
            image_mean=images.image_mean,
            image_std=images.image_std,
        )
        for video in videos
    ]
    pixels = {name: torch.cat([one[name] for one in made]) for name in made[0]}
    sides = ("start", "end") if family.frame_times else ()  # then each pair lies between tokens of its own
    pad, *around = (
        processor.tokenizer.convert_ids_to_tokens(getattr(model.config, f"{name}_token_id"))
        for name in ("video", *(f"vision_{side}" for side in sides))
    )
    written = []  # x.join(around) is x between the two, or nothing
    for video, (t, h, w) in zip(videos, pixels["video_grid_thw"].tolist(), strict=True):
        step = pad * (h * w // images.merge_size**2)
        times = seconds(video, t) if around else []
        written.append("".join(f"<{second:.1f} seconds>{step.join(around)}" for second in times) or step * t)
    before, *behind = text.split(pad.join(around) or pad, len(videos))
    text = before + "".join(own + rest for own, rest in zip(written, behind, strict=True))
    inputs = {**processor.tokenizer([text], return_tensors="pt"), **pixels}
    takes = inspect.signature(model.forward).parameters
    if "mm_token_type_ids" in takes:
        inputs["mm_token_type_ids"] = 2 * (inputs["input_ids"] == model.config.video_token_id).long()
    if "second_per_grid_ts" in takes:
        inputs["second_per_grid_ts"] = torch.tensor([images.temporal_patch_size / video.sample_fps for video in videos])
    return inputs


def placed(inputs: Mapping[str, Any], device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Put inputs on a device, pixels in the model's dtype."""
    return {
        name: value.to(device=device, dtype=dtype if name.startswith("pixel") and value.is_floating_point() else None)
        if isinstance(value, torch.Tensor)
        else value
        for name, value in inputs.items()
    }


def placed_for(model: nn.Module, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Put inputs where a model computes, wherever its weights are kept, pixels in its dtype."""
    return placed(inputs, device_of(model), next(model.parameters()).dtype)


def as_seen(processor: Any, image: Image.Image) -> Image.Image:
    """Return the part of an image that the tower gets, and what is put around it: the grid of tokens lies on that."""
    how = processor.image_processor
    left, top, right, bottom = seen_box(how, image.size)
    if (left, top, right, bottom) == (0, 0, *image.size):
        return image
    if left < 0 or top < 0:
        around = Image.new("RGB", (right - left, bottom - top), tuple(int(255 * mean) for mean in how.image_mean))
        around.paste(image, (-left, -top))
        return around
    return image.crop((left, top, right, bottom))


def seen_box(how: Any, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return (left, top, right, bottom), in pixels of an image of `size` (width, height), of what the tower gets.

    LLaVA-1.5 pads to a square with the mean colour (`do_pad`), and then the box reaches beyond the image; or it crops
    the middle of the resized image. A processor with tiles squeezes its overview into a square whole.

    Args:
        how: the image processor.
    """
    width, height = size
    if hasattr(how, "image_grid_pinpoints"):
        return 0, 0, width, height
    left = top = 0
    if getattr(how, "do_pad", False) and hasattr(how, "pad_to_square"):
        side = max(size)
        left, top, width, height = -((side - width) // 2), -((side - height) // 2), side, side
    short, crop = dict(getattr(how, "size", None) or {}).get("shortest_edge"), getattr(how, "crop_size", None)
    if getattr(how, "do_center_crop", False) and short and crop:
        scale = min(width, height) / short
        wanted = [round(dict(crop)[side] * scale) for side in ("width", "height")]
        wide, high = (min(part, whole) for part, whole in zip(wanted, (width, height), strict=True))
        left, top = left + (width - wide) // 2, top + (height - high) // 2
        width, height = wide, high
    return left, top, left + width, top + height


def chat(processor: Any, kind: str, count: int, question: str) -> str:
    """Return the prompt text; without a chat template, the placeholders and the question stand on one line each."""
    return turn(processor, [{"type": kind}] * count + [{"type": "text", "text": question}])


def interleaved(processor: Any, count: int, question: str) -> tuple[str, list[int]]:
    """Return the prompt text with images where the question names them, `<image 1>` and on, those it does not first.

    Where there is no chat template, or one that puts all images before all text, they come first and the names stay.

    Returns:
        the text, and for each of its placeholders the number of the image that stands there, from 0.
    """
    parts: list[str | int] = []
    end = 0
    for name in NAMED.finditer(question):
        if 0 < int(name[1]) <= count:
            parts += [question[end : name.start()], int(name[1]) - 1]
            end = name.end()
    if not parts or not keeps_order(processor):
        return chat(processor, "image", count, question), list(range(count))
    parts = [*(number for number in range(count) if number not in parts), *parts, question[end:]]
    content = [
        {"type": "text", "text": part} if isinstance(part, str) else {"type": "image"} for part in parts if part != ""
    ]
    return turn(processor, content), [part for part in parts if isinstance(part, int)]


def keeps_order(processor: Any) -> bool:
    """Tell whether images stand in a prompt where they stand in a turn."""
    image, *texts = {"type": "image"}, {"type": "text", "text": "a"}, {"type": "text", "text": "b"}
    both = turn(processor, [texts[0], image, texts[1]]), turn(processor, [image, *texts])
    return template_of(processor) is not None and both[0] != both[1]


def template_of(processor: Any) -> Any:
    return getattr(processor, "chat_template", None) or getattr(processor.tokenizer, "chat_template", None)


def turn(processor: Any, content: list[dict[str, str]]) -> str:
    """Return the prompt text of one turn of a user."""
    if template_of(processor) is None:
        return "\n".join(part.get("text", getattr(processor, f"{part['type']}_token", "")) for part in content)
    source = processor if getattr(processor, "chat_template", None) else processor.tokenizer
    return str(
        source.apply_chat_template([{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True)
    )


def seconds(video: Video, steps: int) -> list[float]:
    """Return the middle of each temporal cell, in seconds of the file."""
    times = [index / video.fps for index in video.indices]
    size = -(-len(times) // steps)
    groups = [times[i * size : (i + 1) * size] for i in range(steps)]
    return [(group[0] + group[-1]) / 2 for group in groups]

"""Make calibration prompts of a wanted length: a long video, or many images with a text after each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..frames import Video, fit_size, load_video, resize_frames
from ..loading import Loaded
from ..media import load_image
from ..prompt import video_prompt
from ..synthetic import scene, screen

FIRST_SEED = 450_000_000  # seed of generated images; apart from those of training, tests and measurements
SHORT = 0.8  # share of the wanted length below which a prompt is too short: budgets are scaled to that length
SIDE, PAN = 224, 7  # pixels of a side of a generated frame, and of the step from one frame to the next

Inputs = dict[str, Any]


@dataclass(frozen=True)
class Source:
    """Where prompts come from; `make` takes their number, from 0 on."""

    name: str
    make: Callable[[int], Inputs]
    only: int | None = None  # so many different ones


def length(inputs: Inputs) -> int:
    return int(inputs["input_ids"].shape[1])


def long_enough(inputs: Inputs, tokens: int, name: str) -> Inputs:
    """Return the inputs if they come near the wanted length.

    Raises:
        ValueError: they do not.
    """
    if length(inputs) < SHORT * tokens:
        raise ValueError(f"{name} makes a prompt of {length(inputs)} tokens, not of {tokens}; ask for fewer tokens")
    return inputs


def video_source(loaded: Loaded, path: str, tokens: int, question: str) -> Source:
    """Read a video file, or "worlds": generated scenes along which a camera moves."""
    images = loaded.processor.image_processor
    patch, merge = getattr(images, "patch_size", 14), getattr(images, "merge_size", 2)

    def prompt(frames: int, number: int) -> Inputs:
        if path == "worlds":
            video = moving(FIRST_SEED + number, frames, patch * merge)
        else:
            video = load_video(path, nframes=frames, patch_size=patch, merge_size=merge)
        return video_prompt(loaded.processor, loaded.model, question, video)

    def make(number: int) -> Inputs:
        short, longer = (length(prompt(frames, number)) for frames in (4, 8))
        if longer <= short:
            raise ValueError(f"a longer video makes no longer prompt for {loaded.name}; use images")
        wanted = 4 + 4 * (tokens - short) / (longer - short)
        return long_enough(prompt(max(2, 2 * round(wanted / 2)), number), tokens, f"the video {path}")

    return Source(f"video {path}", make, None if path == "worlds" else 1)


def moving(seed: int, frames: int, factor: int) -> Video:
    """Draw a generated scene that moves sideways; sides divisible by `factor`."""
    still = np.asarray(scene(seed, (SIDE, SIDE)).image)
    shifted = np.stack([np.roll(still, PAN * t, axis=1) for t in range(frames)])
    pixels = torch.from_numpy(shifted).permute(0, 3, 1, 2)
    height, width = fit_size(SIDE, SIDE, factor, 128 * factor**2, 768 * factor**2)
    return Video(resize_frames(pixels, height, width), 2.0, 2.0, tuple(range(frames)), "worlds")


def image_source(loaded: Loaded, files: Sequence[Path], tokens: int, question: str, prompts: int) -> Source:
    """Read image files, or without any generate scenes and screens; each with its question, one after the other.

    Args:
        prompts: how many the files are shared among.
    """

    def drawn(number: int, place: int) -> tuple[Image.Image, str]:
        if files:
            return load_image(files[number + place * prompts]).image, question
        world = (scene, screen)[place % 2](FIRST_SEED + 1000 * number + place, (SIDE, SIDE))
        return world.image, world.questions[0].text

    def make(number: int) -> Inputs:
        pairs: list[tuple[Image.Image, str]] = []
        most, reached = (len(files) - number + prompts - 1) // prompts if files else tokens, 0
        while reached < tokens and len(pairs) < most:
            pairs.append(drawn(number, len(pairs)))
            reached += length(interleaved(loaded.processor, pairs[-1:]))
        return long_enough(interleaved(loaded.processor, pairs), tokens, f"{len(pairs)} images, all there are,")

    name = f"{len(files)} images" if files else "generated images"
    return Source(f"{name}, a text after each", make, len(files) or None)


def interleaved(processor: Any, pairs: Sequence[tuple[Image.Image, str]]) -> Inputs:
    """Make the inputs of one user turn: every image with its text behind it."""
    template = getattr(processor, "chat_template", None) or getattr(processor.tokenizer, "chat_template", None)
    if template is None:
        text = "\n".join(f"{getattr(processor, 'image_token', '')}\n{words}" for _, words in pairs)
    else:
        turn = [part for _, words in pairs for part in ({"type": "image"}, {"type": "text", "text": words})]
        own = processor if getattr(processor, "chat_template", None) else processor.tokenizer
        said = [{"role": "user", "content": turn}]
        text = str(own.apply_chat_template(said, tokenize=False, add_generation_prompt=True))
    return dict(processor(text=[text], images=[image for image, _ in pairs], return_tensors="pt"))

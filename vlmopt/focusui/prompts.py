"""Turn examples into model inputs, by the model's own processor and chat template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from vlmopt.prompt import as_seen, chat

from .examples import Box, Example

IGNORE = -100  # a label that asks for nothing
WHITE = (255, 255, 255)


@dataclass(frozen=True)
class Prompts:
    """Inputs of a batch, on the CPU, padded on the left."""

    inputs: dict[str, Any]
    labels: Tensor  # Long[B, L]; IGNORE but for answers
    answers: list[int]  # tokens of every answer at the end of its row
    boxes: list[Tensor]  # [k, 4] per example, in fractions of what the tower sees of the image

    @property
    def asked(self) -> int:
        """The number of tokens to be predicted."""
        return sum(self.answers)


def prompts(processor: Any, examples: Sequence[Example], *, answered: bool) -> Prompts:
    """Make one user turn per example, the image before the question, and the assistant's answer where wanted.

    Raises:
        ValueError: an answer cannot be told from its prompt in tokens.
    """
    texts = [chat(processor, "image", 1, example.question) for example in examples]
    answers = [0] * len(examples)
    if answered:
        whole = [text + reply(processor, text, example) for text, example in zip(texts, examples, strict=True)]
        answers = [tokens_between(processor.tokenizer, *pair) for pair in zip(texts, whole, strict=True)]
        texts = whole
    inputs = processor(
        text=texts,
        images=[[example.image] for example in examples],
        return_tensors="pt",
        padding=True,
        padding_side="left",
    )
    labels = torch.full_like(inputs["input_ids"], IGNORE)
    if answered:
        places = torch.arange(inputs["input_ids"].shape[1])
        mine = places >= len(places) - torch.tensor(answers)[:, None]
        labels = torch.where(mine, inputs["input_ids"], IGNORE)
    boxes = [torch.tensor([seen(processor, e.image, box) for box in e.boxes]).reshape(-1, 4) for e in examples]
    return Prompts(dict(inputs), labels, answers, boxes)


def reply(processor: Any, prompt: str, example: Example) -> str:
    """Return the answer with whatever the chat template closes an assistant's turn with."""
    template = next((source for source in (processor, processor.tokenizer) if source.chat_template), None)
    if template is not None:
        user = [{"type": "image"}, {"type": "text", "text": example.question}]
        turns = [
            {"role": "user", "content": user},
            {"role": "assistant", "content": [{"type": "text", "text": example.answer}]},
        ]
        whole = str(template.apply_chat_template(turns, tokenize=False))
        if whole.startswith(prompt):
            return whole.removeprefix(prompt).rstrip("\n")  # nobody generates what follows the end of the turn
    return f"{'' if template else chr(10)}{example.answer}{processor.tokenizer.eos_token or ''}"


def tokens_between(tokenizer: Any, prompt: str, whole: str) -> int:
    """Return the number of tokens of `whole` behind those of `prompt`, with which it begins."""
    first, both = (tokenizer(text)["input_ids"] for text in (prompt, whole))
    if both[: len(first)] != first or len(both) == len(first):
        raise ValueError(f"the tokenizer joins prompt and answer, so the answer cannot be told apart: {whole[-60:]!r}")
    return len(both) - len(first)


def seen(processor: Any, image: Image.Image, box: Box) -> Box:
    """Convert a box of an image to fractions of what the tower sees of it, which may be padded or cropped."""
    shown = as_seen(processor, image)
    if shown.size == image.size:
        return box
    mask = Image.new("RGB", image.size)
    (x0, x1), (y0, y1) = ((box[i] * side, box[i + 2] * side) for i, side in enumerate(image.size))
    ImageDraw.Draw(mask).rectangle((x0, y0, max(x1 - 1, x0), max(y1 - 1, y0)), fill=WHITE)
    found = as_seen(processor, mask).convert("L").point(lambda value: 255 * (value == 255)).getbbox()
    width, height = shown.size
    return (0.0,) * 4 if found is None else (found[0] / width, found[1] / height, found[2] / width, found[3] / height)

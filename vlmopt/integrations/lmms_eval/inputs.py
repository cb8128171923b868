"""Turn conversations into model inputs, and new tokens into texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...families import family_of
from ...frames import load_video
from ...prompt import placed, video_prompt
from .conversation import Clip, Conversation, rendered


@dataclass(frozen=True)
class Inputs:
    """How one model is asked.

    Attributes:
        size: bounds of an image's area in pixels as its processor takes them; None for its own.
        max_frames: of a video.
    """

    processor: Any
    config: Any
    ends: tuple[int, ...]
    pad: int
    size: dict[str, int] | None
    max_frames: int

    @classmethod
    def of(cls, model: Any, processor: Any, low: int | None, high: int | None, max_frames: int) -> Inputs:
        """Describe how a model is asked.

        Raises:
            ValueError: `low` or `high` for a family whose images have one size, or low > high.
        """
        end, tokenizer = model.generation_config.eos_token_id, processor.tokenizer
        return cls(
            processor=processor,
            config=model.config,
            ends=() if end is None else (end,) if isinstance(end, int) else tuple(end),
            pad=tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
            size=area(model.config, processor, low, high),
            max_frames=max_frames,
        )

    @property
    def filler(self) -> int:
        """What stands behind the end of a shorter answer in a batch."""
        return self.ends[0] if self.ends else self.pad

    def batch(self, asked: Sequence[Conversation], model: Any) -> dict[str, Any]:
        """Make inputs on the model's device, ragged prompts padded on the left; a conversation with a clip is alone."""
        first = asked[0]
        inputs = self._images(asked) if first.clip is None else self._video(first.words, first.clip, model)
        return placed(inputs, model.device, model.dtype)

    def _images(self, asked: Sequence[Conversation]) -> dict[str, Any]:
        text = [rendered(self.processor, one) for one in asked]
        images = [one.images for one in asked] if asked[0].images else None
        kwargs = {} if self.size is None or images is None else {"images_kwargs": {"size": self.size}}
        return dict(
            self.processor(text=text, images=images, return_tensors="pt", padding=True, padding_side="left", **kwargs)
        )

    def _video(self, words: str, clip: Clip, model: Any) -> dict[str, Any]:
        images = self.processor.image_processor
        video = load_video(
            clip.path,
            start=clip.start,
            end=clip.end,
            max_frames=self.max_frames,
            min_frames=min(4, self.max_frames),
            patch_size=getattr(images, "patch_size", 14),
            merge_size=getattr(images, "merge_size", 2),
        )
        return video_prompt(self.processor, model, words, video)

    def answer(self, text: str) -> list[int]:
        """Return the tokens of an answer that follows a prompt.

        The blank that lmms-eval puts between the two is left out: a chat template brings its own.

        Raises:
            ValueError: there are none.
        """
        tokens = self.processor.tokenizer(text.strip(), add_special_tokens=False)["input_ids"]
        if not tokens:
            raise ValueError(f"the likelihood of {text!r} was asked for, and it has no tokens")
        return list(tokens)

    def texts(self, new: Tensor) -> list[str]:
        """Decode Long[b, t] of new tokens."""
        return [text.strip() for text in self.processor.tokenizer.batch_decode(new, skip_special_tokens=True)]

    def lengths(self, new: Tensor) -> list[int]:
        """Return the number of tokens of each row of Long[b, t] up to and with its end mark."""
        ended = torch.isin(new, torch.tensor(self.ends, dtype=new.dtype))
        return [int(row.nonzero()[0]) + 1 if row.any() else len(row) for row in ended]


def area(config: Any, processor: Any, low: int | None, high: int | None) -> dict[str, int] | None:
    if low is None and high is None:
        return None
    if not family_of(config).patch_grid:
        raise ValueError(
            f"min_pixels and max_pixels mean nothing for model_type={config.model_type}: it takes images of one size"
        )
    own = dict(processor.image_processor.size)
    size = {"shortest_edge": low or own["shortest_edge"], "longest_edge": high or own["longest_edge"]}
    if size["shortest_edge"] > size["longest_edge"]:
        raise ValueError(f"min_pixels is {size['shortest_edge']}, more than max_pixels, {size['longest_edge']}")
    return size

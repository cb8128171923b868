"""From the messages of lmms-eval to a prompt: words in their order, images and videos by themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ...media import load_image
from ...prompt import chat

IMAGES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})


@dataclass(frozen=True)
class Clip:
    """A video file, or the part of it between two seconds."""

    path: str
    start: float | None = None
    end: float | None = None


@dataclass(frozen=True)
class Conversation:
    """What is asked: turns as chat templates take them, and their images or their video."""

    turns: list[dict[str, Any]]
    images: list[Image.Image]
    clip: Clip | None = None

    @property
    def words(self) -> str:
        """The text of a single turn of the user: what is asked about a video.

        Raises:
            ValueError: there are more turns.
        """
        if [turn["role"] for turn in self.turns] != ["user"]:
            raise ValueError(f"expected one turn of the user, got {[turn['role'] for turn in self.turns]}")
        return "\n".join(part["text"] for part in self.turns[0]["content"] if part["type"] == "text")


def conversation(messages: Sequence[Mapping[str, Any]]) -> Conversation:
    """Read the messages of a chat task.

    Args:
        messages: [{"role", "content": [{"type": "text" | "image" | "video", "text" | "url"}]}].

    Raises:
        ValueError: a kind of media that no model here takes, several videos, or a video beside images.
        FileNotFoundError and the other errors of `vlmopt.media.load_image`.
    """
    turns, images, clips = [], [], []
    for message in messages:
        content = message["content"]
        parts: list[dict[str, str]] = []
        for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
            kind = part["type"]
            if kind == "text":
                parts.append({"type": "text", "text": part["text"]})
                continue
            if kind == "image":
                images.append(opened(part["url"]))
            elif kind == "video":
                clips.append(clip(part))
            else:
                raise ValueError(f"a task asks about {kind!r}; vlmopt answers about text, image and video")
            parts.append({"type": kind})
        turns.append({"role": message["role"], "content": parts})
    if len(clips) > 1 or (clips and images):
        raise ValueError(f"one sample has {len(clips)} videos and {len(images)} images: one video alone can be asked")
    return Conversation(turns, images, clips[0] if clips else None)


def user_turn(visuals: Sequence[Any] | None, text: str) -> list[dict[str, Any]]:
    """Make the messages of a simple task: what `doc_to_visual` gave, then the text.

    Raises:
        TypeError: a visual that is neither an image nor the path of one or of a video.
    """
    return [{"role": "user", "content": [*map(content, visuals or ()), {"type": "text", "text": text}]}]


def content(visual: Any) -> dict[str, Any]:
    if isinstance(visual, Image.Image):
        return {"type": "image", "url": visual}
    if isinstance(visual, (str, Path)):
        return {"type": "image" if Path(visual).suffix.lower() in IMAGES else "video", "url": str(visual)}
    raise TypeError(
        f"a task gives {type(visual).__name__} to look at; vlmopt takes images and paths of images or videos"
    )


def opened(source: Any) -> Image.Image:
    if isinstance(source, Image.Image):
        return source.convert("RGB")
    if isinstance(source, (str, Path)):
        return load_image(source).image
    raise TypeError(f"an image of type {type(source).__name__} cannot be read; give a PIL image or a path")


def clip(part: Mapping[str, Any]) -> Clip:
    """Read a clip; its span stands beside the path, or with the path in a mapping, as qwen-vl-utils writes it."""
    url = part["url"]
    if isinstance(url, Mapping):
        path: Any = next((url[name] for name in ("video", "url", "path") if name in url), None)
        found = Clip(path=path, start=url.get("video_start"), end=url.get("video_end"))
    else:
        found = Clip(path=url, start=part.get("start_time"), end=part.get("end_time"))
    if not isinstance(found.path, (str, Path)):
        raise TypeError(f"a video of type {type(found.path).__name__} cannot be read; give the path of a file")
    return found


def rendered(processor: Any, asked: Conversation) -> str:
    """Return the prompt text, by the chat template; without one a single turn of the user is images, then words."""
    source = next((own for own in (processor, processor.tokenizer) if getattr(own, "chat_template", None)), None)
    if source is None:
        return chat(processor, "image", len(asked.images), asked.words)
    return str(source.apply_chat_template(asked.turns, tokenize=False, add_generation_prompt=True))

"""Processors with torchvision and without.

The stock processors that own a video processor (Qwen-VL, InternVL, LLaVA-OneVision, SmolVLM) insist on it, and it needs
torchvision. `PaddleOCRVLProcessor` is the stock class with the duties of the Qwen2.5-VL one for images alone (same
placeholders, same `mm_token_type_ids`), so the bundled checkpoint, which names it, loads through `AutoProcessor` with
torchvision or without, and with nothing registered. The others are loaded for images alone where it is missing.
"""

from __future__ import annotations

import importlib.util
import inspect
from typing import Any

import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoProcessor

from ..media import optional_module

# What transformers and the Hub client raise for files that are missing, damaged or not to be had.
FAILURES = (
    OSError, ValueError, ImportError, RuntimeError, KeyError, AttributeError, TypeError, ArithmeticError,
    SafetensorError, StrictDataclassError,
)  # fmt: skip


def build_processor(tokenizer: Any, chat_template: str, patch_size: int, merge_size: int) -> Any:
    """Pair a tokenizer that knows `image_token` with the Qwen2-VL image processor."""
    from transformers import PaddleOCRVLProcessor, Qwen2VLImageProcessorPil

    cell = patch_size * merge_size
    images = Qwen2VLImageProcessorPil(
        patch_size=patch_size,
        merge_size=merge_size,
        temporal_patch_size=2,
        size={"shortest_edge": 16 * cell * cell, "longest_edge": 400 * cell * cell},
    )
    return PaddleOCRVLProcessor(images, tokenizer, chat_template=chat_template)


def load_processor(source: str, *, trust_remote_code: bool = False, **download: Any) -> Any:
    """Load the processor of a directory or Hub id; without its video part if only that needs a missing torchvision.

    Args:
        download: passed on to `from_pretrained`, such as `local_files_only`.

    Raises:
        ValueError: it cannot be loaded, only a bare tokenizer comes back, or torchvision is installed but broken.
    """
    torchvision, why = optional_module("torchvision")
    if torchvision is None and importlib.util.find_spec("torchvision") is not None:
        raise ValueError(
            f"torchvision is installed but cannot be imported ({why}), and then no image processor of transformers "
            "works: install the build that matches torch, or uninstall it (vlmopt does not need it)"
        )
    try:
        processor = AutoProcessor.from_pretrained(source, trust_remote_code=trust_remote_code, **download)
        if hasattr(processor, "image_processor"):
            return processor
        problem = f"only a {type(processor).__name__} came back"
    except FAILURES as error:
        problem = first_line(error)
    if torchvision is None:
        try:
            config = AutoConfig.from_pretrained(source, trust_remote_code=False, **download)
            return without_video(config).from_pretrained(source, **download)
        except FAILURES as error:
            problem += f"; for images alone: {first_line(error)}"
    raise ValueError(f"no image processor can be loaded from {source}: {problem}")


def without_video(config: Any) -> Any:
    """Return the stock processor class of a config, without its video processor; marked by `images_only`."""
    stock = transformers.PROCESSOR_MAPPING[type(config)]

    class ImagesOnly(transformers.ProcessorMixin):
        """Stands between the stock class and its base, and keeps the missing part from the base."""

        def __init__(self, *parts: Any, **named: Any) -> None:
            named.pop("video_processor", None)
            super().__init__(*(part for part in parts if part is not None), **named)

    def init(self: Any, *parts: Any, **named: Any) -> None:
        named["video_processor"] = None  # some ask for it by position
        stock.__init__(self, *parts, **named)

    def validate(processor_config: Any, valid_kwargs: Any) -> Any:
        return stock.validate_init_kwargs(processor_config, valid_kwargs=[p.name for p in kept])

    # Loading reads the parts off the signature, and the settings off the code object, which has none of the names here.
    given = inspect.signature(stock.__init__)
    kept = [parameter for name, parameter in given.parameters.items() if name != "video_processor"]
    init.__signature__ = given.replace(parameters=kept)  # type: ignore[attr-defined]
    body = {
        "__init__": init,
        "__doc__": stock.__doc__,
        "validate_init_kwargs": staticmethod(validate),
        "attributes": ["image_processor", "tokenizer"],  # read by transformers 4
        "images_only": True,
    }
    return type(stock.__name__, (stock, ImagesOnly), body)


def first_line(error: Exception) -> str:
    """Return the first line of a message that says something."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)

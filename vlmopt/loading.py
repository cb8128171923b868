"""Load models and processors by bundled name, directory or Hub id; say in one sentence what cannot be had."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vlmopt.core import shown

from . import hub
from .checkpoints import bundled, check_name, load_checkpoint
from .checkpoints.names import choices
from .checkpoints.processor import FAILURES, first_line, load_processor
from .choices import DTYPES


@dataclass(frozen=True)
class Loaded:
    """A model in eval mode on its device, its processor, and what had to be done to load them."""

    name: str
    model: Any
    processor: Any
    notes: tuple[str, ...] = ()


def load(name: str, *, device: str = "auto", dtype: str = "auto") -> Loaded:
    """Load a vision-language model and its processor.

    Args:
        name: a bundled checkpoint, a directory written by `save_pretrained`, or a Hub id.
        device: "auto" (CUDA where there is one, else the CPU) or a torch device.
        dtype: one of `DTYPES`; "auto" is the one of the weights.

    Raises:
        ValueError: no such model, no connection (known in seconds), no vision-language model, unknown device or dtype.
    """
    check_name(name)
    where = check_device(device)
    if dtype not in DTYPES:
        raise ValueError(f"unknown dtype {shown(dtype)}; choose one of {', '.join(DTYPES)}")
    if name in bundled():
        model, processor = load_checkpoint(name, dtype=dtype)
        return Loaded(name, model.to(where), processor)
    download = _download(name)
    config = _config(name, download)
    _check_kind(name, config)
    from transformers import AutoModelForImageTextToText

    processor = load_processor(name, **download)
    try:
        # Weights that were pickled can run code when they are read; safetensors cannot.
        model = AutoModelForImageTextToText.from_pretrained(
            name, dtype=dtype, use_safetensors=True, trust_remote_code=False, **download
        )
    except FAILURES as error:
        raise ValueError(f"the weights of {name} cannot be loaded: {first_line(error)}") from error
    said = ("torchvision is not installed: the processor was loaded for images alone",)
    return Loaded(name, model.eval().to(where), processor, said if hasattr(processor, "images_only") else ())


def check_device(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        wanted = torch.device(device)
        torch.empty(0, device=wanted)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"device {shown(device)} cannot be used here: {first_line(error)}") from None
    if wanted.type == "meta":
        raise ValueError("device 'meta' holds no numbers, so nothing can be answered there: choose cpu, cuda or mps")
    return wanted


def _download(name: str) -> dict[str, Any]:
    """Return what `from_pretrained` is to be told about the network."""
    return {} if Path(name).is_dir() else hub.download()


def _config(name: str, download: Mapping[str, Any] | None = None) -> Any:
    from transformers import AutoConfig

    download = _download(name) if download is None else download
    try:
        return AutoConfig.from_pretrained(name, trust_remote_code=False, **download)  # None asks on stdin
    except FAILURES as error:
        text = str(error)
        if Path(name).is_dir():
            raise ValueError(f"{name}/config.json cannot be read: {first_line(error)}") from error
        if "gated" in text or "401" in text:
            reason = "the Hub has no public model of that name (gated ones need `hf auth login`)"
        elif download or (isinstance(error, OSError) and ("connect" in text or "offline" in text.lower())):
            reason = "the Hub cannot be reached and the model is not in its local cache"
        else:
            reason = first_line(error)
        raise ValueError(f"model {name!r} not found: it is not {choices()}, no directory, and {reason}") from error


def _check_kind(name: str, config: Any) -> None:
    from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        raise ValueError(
            f"{name} is not a vision-language model: transformers has no image-text-to-text class for "
            f"model_type={config.model_type!r}"
        )

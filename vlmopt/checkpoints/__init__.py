"""Checkpoints that come with the package, loaded without network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def bundled() -> list[str]:
    """Return the names of the checkpoints in the package."""
    return sorted(path.parent.name for path in HERE.glob("*/config.json"))


def load_checkpoint(name_or_path: str | Path, **kwargs: Any) -> tuple[Any, Any]:
    """Load a model and its processor.

    Args:
        name_or_path: a bundled name (`bundled()` lists them), a directory, or a Hub id.
        **kwargs: passed on to `AutoModelForImageTextToText.from_pretrained`. Unless they say otherwise, weights are
            read from safetensors alone, and no code of a checkpoint is run.

    Returns:
        (model in eval mode, processor)
    """
    from transformers import AutoModelForImageTextToText

    from .processor import load_processor

    source = str(HERE / name_or_path if name_or_path in bundled() else name_or_path)
    trust = kwargs.pop("trust_remote_code", False)  # None asks on stdin
    options = {"use_safetensors": True, **kwargs}  # what was pickled can run code when it is read
    model = AutoModelForImageTextToText.from_pretrained(source, trust_remote_code=trust, **options)
    return model.eval(), load_processor(source, trust_remote_code=trust)


__all__ = ["bundled", "load_checkpoint"]

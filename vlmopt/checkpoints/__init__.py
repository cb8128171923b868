"""Checkpoints that come with the package, loaded without network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def bundled() -> list[str]:
    """Names of the checkpoints in the package."""
    return sorted(path.parent.name for path in HERE.glob("*/config.json"))


def load_checkpoint(name_or_path: str | Path, **kwargs: Any) -> tuple[Any, Any]:
    """Load a model and its processor.

    Args:
        name_or_path: a bundled name (`bundled()` lists them), a directory, or a Hub id.
        **kwargs: passed on to `AutoModelForImageTextToText.from_pretrained`.

    Returns:
        (model in eval mode, processor)
    """
    from transformers import AutoModelForImageTextToText

    from .processor import load_processor

    directory = HERE / str(name_or_path)
    source = str(directory if (directory / "config.json").exists() else name_or_path)
    model = AutoModelForImageTextToText.from_pretrained(source, **kwargs)
    return model.eval(), load_processor(source)


__all__ = ["bundled", "load_checkpoint"]

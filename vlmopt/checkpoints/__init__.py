"""Checkpoints that come with the package, loaded without network."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from .. import hub
from .names import HERE, bundled, check_name


def load_checkpoint(name_or_path: str | Path, **kwargs: Any) -> tuple[Any, Any]:
    """Load a model and its processor.

    Args:
        name_or_path: a bundled name (`bundled()` lists them), a directory, or a Hub id.
        **kwargs: passed on to `AutoModelForImageTextToText.from_pretrained`, and what says how files are had
            (revision, token, cache_dir, ...) to the processor's as well. Unless they say otherwise, weights are read
            from safetensors alone, no code of a checkpoint is run, and a Hub that does not answer is given up within
            seconds.

    Returns:
        (model in eval mode, processor)

    Raises:
        ValueError: a name that can be no model; the Hub is not asked for it. What transformers raises goes through.
    """
    from transformers import AutoModelForImageTextToText

    from .processor import load_processor

    check_name(str(name_or_path))
    source = str(HERE / name_or_path if name_or_path in bundled() else name_or_path)
    trust = kwargs.pop("trust_remote_code", False)  # None asks on stdin
    if not os.path.isdir(source):
        kwargs = hub.download(**kwargs)
    options = {"use_safetensors": True, **kwargs}  # what was pickled can run code when it is read
    model = AutoModelForImageTextToText.from_pretrained(source, trust_remote_code=trust, **options)
    download = {name: kwargs[name] for name in hub.OPTIONS if name in kwargs}
    return model.eval(), load_processor(source, trust_remote_code=trust, **download)


__all__ = ["HERE", "bundled", "check_name", "load_checkpoint"]

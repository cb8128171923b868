"""Where a model's config and its processor's settings come from: a file, a directory, the shipped table, or the Hub."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from vlmopt.core import near, parse, shown

from .. import hub
from ..checkpoints import HERE as CHECKPOINTS
from ..checkpoints import bundled
from ..checkpoints.names import check_described
from ..checkpoints.processor import FAILURES, first_line

TABLE = Path(__file__).parent / "models.json"
SETTINGS = ("preprocessor_config.json", "processor_config.json")


@dataclass(frozen=True)
class Source:
    """A model as its files describe it."""

    name: str
    config: Any
    settings: dict[str, Any]  # of the image processor; {}: the family's own defaults
    origin: str  # where both were found, in words


@cache
def _table() -> dict[str, Any]:
    data: dict[str, Any] = json.loads(TABLE.read_text(encoding="utf-8"))
    return data


def known() -> list[str]:
    """Return the names of the models whose configs are shipped: sizes alone, no weights."""
    return list(_table())


def find(name: str) -> Source:
    """Read a config and the settings of its image processor.

    Args:
        name: a config.json, a directory with one, a bundled checkpoint, a model of the shipped table, or a Hub id.

    Raises:
        TypeError: no string. ValueError: none of these, or a file that cannot be read.
    """
    if not isinstance(name, str):
        raise TypeError(f"model must be a name or a path, got {shown(name)} of type {type(name).__name__}")
    if name in bundled():
        return local(name, CHECKPOINTS / name)
    if os.path.isdir(name):
        return local(name, Path(name))
    if os.path.isfile(name):
        return Source(
            name, made(read(Path(name)), name), {}, "a config file; the processor's settings are the family's"
        )
    if name in _table():
        entry = _table()[name]
        return Source(name, made(entry["config"], name), entry.get("processor", {}), "the table of vlmopt")
    check_described(name)
    return downloaded(name)


def local(name: str, directory: Path) -> Source:
    """Read a directory with config.json, as `save_pretrained` writes it."""
    if not (directory / "config.json").is_file():
        raise ValueError(f"{directory} holds no config.json")
    found = next((directory / file for file in SETTINGS if (directory / file).is_file()), None)
    settings = {} if found is None else settings_of(read(found))
    return Source(name, made(read(directory / "config.json"), name), settings, f"{directory}")


def downloaded(name: str) -> Source:
    """Fetch two small files of a Hub repository."""
    from huggingface_hub import hf_hub_download

    options = hub.download()

    def fetched(file: str) -> dict[str, Any]:
        return read(Path(hf_hub_download(name, file, **options)))

    try:
        config = fetched("config.json")
    except FAILURES as error:
        raise ValueError(
            f"model {name!r} is not in the shipped table{near(name, _table())}, and its config cannot be had from the "
            f"Hub: {hub.reason(error, options)}"
        ) from error
    for file in SETTINGS:
        try:
            return Source(name, made(config, name), settings_of(fetched(file)), "the Hub")
        except OSError:  # not in the repository
            continue
    return Source(name, made(config, name), {}, "the Hub; it has no processor settings, so they are the family's")


def read(path: Path) -> dict[str, Any]:
    try:
        data = parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {first_line(error)}") from error
    if not isinstance(data, dict):
        raise ValueError(f"{path} must hold a JSON object, got {shown(data)}")
    return data


def settings_of(data: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of the image processor, which newer files keep inside those of the processor."""
    inner = data.get("image_processor", data)
    return inner if isinstance(inner, dict) else {}


def made(data: dict[str, Any], name: str) -> Any:
    """Make a config object of transformers from the contents of its file."""
    from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, AutoConfig

    kind = data.get("model_type")
    if not isinstance(kind, str):
        raise ValueError(f"{name}: the config has no model_type, so it is of no model of transformers")
    try:
        config = AutoConfig.for_model(kind, **{key: value for key, value in data.items() if key != "model_type"})
    except FAILURES as error:
        raise ValueError(f"{name}: no config can be made of model_type {kind!r}: {first_line(error)}") from error
    if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        raise ValueError(f"{name}: model_type {kind!r} is no vision-language model of transformers")
    return config

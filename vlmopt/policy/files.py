"""Read and write policies: by name, in one line, in files and on the Hub, with the weights that they name.

Everything here is data; `Policy` builds it.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from vlmopt.core import parse, shown

from .. import catalogue, hub, methods, scorers
from ..checkpoints.names import is_hub_id
from ..paths import check_file
from . import inline

FILE_NAME = "vlmopt_policy.json"
BESIDE = "./"  # in a policy's file: relative to the file
WEIGHTS = ("scorer", "marker_from")  # settings, of any selector, that name trained weights


@dataclass(frozen=True)
class Written:
    """A policy as it was written, not built yet."""

    data: Any  # a dict, or a list of methods' dicts
    path: Path | None = None  # the file it came from, for messages


def named(name: str, paths: bool = True) -> Written:
    """Find a preset, the policy at a path (only if `paths`), or one that is written out as JSON or in one line."""
    if (preset := catalogue.preset(name)) is not None:
        return Written(preset.policy)
    if name.removeprefix("\ufeff").lstrip().startswith(("{", "[")):
        return Written(parsed(name))
    if paths and name and os.path.exists(name):
        return read(Path(name))
    known = {*methods.registered(), *methods.plugins()}
    if (written := inline.parse(name, known)) is not None:
        return Written(written)
    if paths and inline.is_path(name):
        return read(Path(name))
    raise inline.unknown(name, sorted(known), paths)


def parsed(text: str) -> Any:
    """Read JSON text; the error quotes it."""
    try:
        return parse(text)
    except ValueError as error:
        raise ValueError(f"{shown(text)} cannot be read as a JSON policy: {error}") from error


def read(path: Path) -> Written:
    """Read a file, or the `vlmopt_policy.json` of a directory; weights beside it get their place on this machine."""
    path = path / FILE_NAME if os.path.isdir(path) else path
    try:
        data = parse(check_file(path, "policy file").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise inline.no_file(str(path)) from error
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as a JSON policy: {error}") from error
    if not isinstance(data, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(data).__name__}")
    try:
        return Written(with_weights(data, lambda source: located(source, path.parent)), path)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def save(policy: dict[str, Any], directory: Path) -> Path:
    """Write a policy's dict form into a directory, and the weights that lie in directories of this machine beside it.

    Names of bundled weights and of Hub repositories mean the same everywhere; they stay as they are.
    """
    if os.path.exists(directory) and not os.path.isdir(directory):
        raise ValueError(f"{directory} is a file; give a directory")
    directory.mkdir(parents=True, exist_ok=True)
    moved = with_weights(policy, lambda source: brought(source, directory))
    path = directory / FILE_NAME
    path.write_text(as_json(moved), encoding="utf-8")
    return path


def as_json(policy: dict[str, Any]) -> str:
    return json.dumps(policy, indent=2, allow_nan=False) + "\n"


def download(repo_id: str, **options: Any) -> Written:
    """Fetch the policy of a Hub repository, and weights that lie beside it."""
    if not is_hub_id(repo_id):
        raise ValueError(f"{shown(repo_id)} is not a directory, and no Hub id (owner/name)")
    options = hub.download(**options)
    path = fetched(repo_id, FILE_NAME, **options)
    for folder in beside(path):
        for file in scorers.FILES:
            fetched(repo_id, f"{folder}/{file}", **options)
    return read(path)


def fetched(repo_id: str, file: str, **options: Any) -> Path:
    """Return the path of a file of a Hub repository on this machine."""
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repo_id, file, **options))
    except (OSError, ValueError) as error:  # network, missing repository or file
        raise ValueError(
            f"{shown(repo_id)} is not a directory, and {file} cannot be had from the Hub under that name: "
            f"{hub.reason(error, options)}"
        ) from error


def upload(policy: dict[str, Any], repo_id: str, private: bool | None, token: str | bool | None, **commit: Any) -> str:
    """Upload what `save` writes; return the address of the commit."""
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as folder:
        save(policy, Path(folder))
        repo = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        return str(api.upload_folder(repo_id=repo, folder_path=folder, **commit))


def with_weights(data: Any, change: Callable[[str], str]) -> Any:
    """Copy a policy's dict form with every name of trained weights changed, those of hosts among them."""
    if isinstance(data, (list, tuple)):
        return [with_weights(entry, change) for entry in data]
    if not isinstance(data, dict):
        return data
    return {
        key: change(value) if key in WEIGHTS and isinstance(value, str) else with_weights(value, change)
        for key, value in data.items()
    }


def beside(path: Path) -> list[str]:
    """Return the weights that lie beside a policy's file according to it, as paths relative to it."""
    found: list[str] = []

    def note(source: str) -> str:
        found.append(source)
        return source

    with_weights(read(path).data, note)
    folders = [Path(source) for source in found if Path(source).is_relative_to(path.parent)]
    return sorted({folder.relative_to(path.parent).as_posix() for folder in folders})


def located(source: str, folder: Path) -> str:
    """Return where the weights are that a policy's file names."""
    if not source.startswith(BESIDE):
        return source
    if ".." in PurePosixPath(source).parts:
        raise ValueError(f"{source!r} leaves the policy's directory; weights named by './' lie inside it")
    return str(folder / source)


def brought(source: str, directory: Path) -> str:
    """Copy weights into a policy's directory unless they are there or have a name everywhere; return their name."""
    if not scorers.is_folder(source):
        return source
    folder, home = scorers.find(source).resolve(), directory.resolve()
    if not folder.is_relative_to(home):
        number = 1
        while (place := home / (f"scorer-{number}" if number > 1 else "scorer")).exists() and not same(folder, place):
            number += 1
        place.mkdir(exist_ok=True)
        for file in scorers.FILES:
            shutil.copyfile(folder / file, place / file)
        folder = place
    return BESIDE + folder.relative_to(home).as_posix()


def same(one: Path, other: Path) -> bool:
    """Return whether two folders hold the same weights."""
    pairs = [(one / file, other / file) for file in scorers.FILES]
    return all(b.is_file() and a.read_bytes() == b.read_bytes() for a, b in pairs)

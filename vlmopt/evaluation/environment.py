"""What a run ran on, so that its figures can be traced."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from ..atomic import atomic_write
from ..loading import Loaded
from ..offload import device_of
from ..runtime import compat
from ..runtime.structure import structure_of
from ..version import __version__
from .saved import saved_environment

PACKAGES = ("torch", "transformers", "accelerate", "tokenizers", "numpy", "pillow", "rapidfuzz", "qwen-vl-utils")
FORMAT = 1


def environment(loaded: Loaded, processes: int, command: Sequence[str] | None = None) -> dict[str, Any]:
    """Return the facts of the software, the machine, the model and this start."""
    first = next(loaded.model.parameters())
    device = device_of(loaded.model)
    return {
        "format": FORMAT,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": list(sys.argv if command is None else command),
        "vlmopt": __version__,
        "commit": commit(Path(__file__).parent),
        "python": platform.python_version(),
        "packages": {name: found for name in PACKAGES if (found := installed(name))},
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        "device_type": device.type,
        "device_map": {k: str(v) for k, v in (getattr(loaded.model, "hf_device_map", None) or {}).items()},
        "processes": processes,
        "threads": torch.get_num_threads(),
        "model": {
            "name": loaded.name,
            "revision": getattr(loaded.model.config, "_commit_hash", None),
            "type": loaded.model.config.model_type,
            "parameters": sum(p.numel() for p in loaded.model.parameters()),
            "dtype": str(first.dtype).removeprefix("torch."),
            "attention": compat.implementation(structure_of(loaded.model).config),
        },
    }


def installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def processor() -> str:
    """Return the name of the CPU, as far as the system tells."""
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text().splitlines() if facts.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def commit(directory: Path) -> str | None:
    """Return the git commit of the source, with "+changes" where the tree differs; None outside our own checkout."""
    try:
        if Path(git(directory, "rev-parse", "--show-toplevel")) != directory.parents[1].resolve():
            return None
        head = git(directory, "rev-parse", "HEAD")
        return head + ("+changes" if git(directory, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def git(directory: Path, *words: str) -> str:
    done = subprocess.run(["git", *words], cwd=directory, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def note_environment(run: Path, facts: dict[str, Any]) -> None:
    """Write environment.json: the facts of this start, and the dates and commands of all starts."""
    earlier = saved_environment(run).get("starts", [])
    start = {name: facts[name] for name in ("date", "command", "processes", "platform", "vlmopt", "commit")}
    with atomic_write(run / "environment.json") as fresh:
        fresh.write_text(
            json.dumps({**facts, "starts": [*earlier, start]}, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )

"""What a run was asked for: written once, compared when it goes on, so that no two runs mix in one directory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..atomic import atomic_write
from ..policy import Policy
from .records import DENSE, FORMAT, file_name
from .sweep import Swept

NAME = "run.json"


def load_request(run: Path) -> dict[str, Any]:
    """Return what the run of a directory was asked for.

    Raises:
        ValueError: no run.json there, or none that can be read.
    """
    path = run / NAME
    try:
        request = dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise ValueError(f"{run} is not a run directory: there is no {NAME}") from error
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}): choose another --out") from error
    if request.get("format") != FORMAT:
        raise ValueError(f"{path} has format {request.get('format')}, this version reads {FORMAT}: choose a new --out")
    return request


def settle(run: Path, request: Mapping[str, Any]) -> None:
    """Write what is asked for, or check that the directory's earlier run asked for the same; policies may be added.

    Raises:
        ValueError: the earlier run asked for something else. OSError: it cannot be written.
    """
    if (run / NAME).exists():
        before = load_request(run)
        for name, policy in before["policies"].items():
            if name not in request["policies"]:
                raise ValueError(f"{run} holds answers of the policy {name!r}: give it again, or choose another --out")
            if request["policies"][name] != policy:
                raise ValueError(
                    f"{run} holds answers of another policy of the name {name!r} ({policy}): choose another --out"
                )
        for name, value in request.items():
            if name not in ("policies", "lines", "notes") and before.get(name) != value:
                raise ValueError(
                    f"{run} holds a run with {name} = {before.get(name)!r}, now it is {value!r}: go on with the same "
                    "settings, or choose another --out"
                )
    elif stray := next((path for path in run.glob("samples*.jsonl") if path.stat().st_size), None):
        raise ValueError(f"{stray} belongs to a run whose {NAME} is gone: choose another --out")
    with atomic_write(run / NAME) as fresh:
        fresh.write_text(json.dumps(dict(request), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def named_policies(texts: list[str], seed: int | None, swept: Mapping[str, Swept] | None = None) -> dict[str, Policy]:
    """Return dense, then the policies, by the name of their preset or file, then the points of a sweep.

    Args:
        texts: presets, or paths of policy files or of directories with one.
        seed: of everything random in them; None for their own.

    Raises:
        ValueError, TypeError: unknown or invalid ones, or two of one name.
    """
    policies = {DENSE: Policy()}
    for text in texts:
        policy, path = Policy.load(text), Path(text)
        name = text if not path.exists() else path.stem if path.is_file() else path.resolve().name
        if policy == Policy() and name == DENSE:
            continue
        if name in policies or file_name(name) == "seen":
            raise ValueError(f"--policy {text}: the name {name!r} is taken, rename the file")
        policies[name] = policy
    for name, point in (swept or {}).items():
        if name in policies:
            raise ValueError(f"--sweep {point.line}: the name {name!r} is taken by --policy")
        policies[name] = Policy.load(point.methods)
    return {name: p if seed is None or name == DENSE else replace(p, seed=seed) for name, p in policies.items()}

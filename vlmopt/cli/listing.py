"""`vlmopt list`: methods with their settings, presets, families, bundled checkpoints."""

from __future__ import annotations

import argparse
import json
from typing import Any

from ..checkpoints import bundled
from ..families import families
from ..methods import describe
from ..policy.presets import presets

NAME = "list"
HELP = "methods and their settings, presets, families, bundled checkpoints"
SECTIONS = ("methods", "presets", "families", "checkpoints")


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("section", nargs="?", choices=SECTIONS, help="only this part")
    parser.add_argument("--json", action="store_true", help="machine-readable")


def execute(options: argparse.Namespace) -> None:
    wanted = [options.section] if options.section else list(SECTIONS)
    data = {name: _GATHER[name]() for name in wanted}
    if options.json:
        print(json.dumps(data, indent=2))
        return
    print("\n\n".join("\n".join([name.upper(), *_SHOW[name](data[name])]) for name in wanted))


def summary(policy: dict[str, Any]) -> str:
    """A policy's dict form in one line: `uniform(keep_ratio=0.25)`."""
    prefill, sparse = policy["prefill"], []
    if prefill is not None:
        pattern = prefill.get("pattern", {"method": "min_p"})
        sparse = ["sparse prefill by " + ("a pattern per head" if "heads" in prefill else call(pattern))]
    methods = [call(method) for method in (*policy["prune"], *policy["attention"])]
    return " + ".join(methods + sparse) or "nothing is changed, only measured"


def call(method: dict[str, Any]) -> str:
    """A method's dict form as it would be written in Python; what is nested in it, too."""
    settings = {k: call(v) if isinstance(v, dict) and "method" in v else v for k, v in method.items() if k != "method"}
    shown = (f"{k}=..." if isinstance(v, dict) else f"{k}={v}" for k, v in settings.items())  # a whole profile
    return f"{method['method']}({', '.join(shown)})"


def _families() -> dict[str, Any]:
    return {f.name: {"model_types": list(f.model_types), "example": f.example} for f in families().values()}


def _show_methods(rows: list[dict[str, Any]]) -> list[str]:
    lines = []
    for row in rows:
        paper = f" [arXiv {row['paper']}]" if row["paper"] else ""
        lines.append(f"  {row['name']} ({row['kind']}, reads {row['reads']}){paper}")
        lines.append(f"      {row['summary']}")
        for s in row["settings"]:
            bounds = [f"> {s['above']}"] if "above" in s else []
            bounds += [f">= {s['min']}"] if "min" in s else []
            bounds += [f"<= {s['max']}"] if "max" in s else []
            bounds += [" | ".join(s["choices"])] if "choices" in s else []
            limits = f" [{', '.join(bounds)}]" if bounds else ""
            default = "" if s["default"] is None else f" (default {s['default']})"
            lines.append(f"      {s['name']:<12} {s.get('help', '')}{limits}{default}")
    return lines


def _show_presets(rows: dict[str, dict[str, Any]]) -> list[str]:
    return [f"  {name:<16} {summary(policy)}" for name, policy in rows.items()]


def _show_families(rows: dict[str, dict[str, Any]]) -> list[str]:
    return [f"  {name:<16} {row['example']}" for name, row in rows.items()]


_GATHER: dict[str, Any] = {
    "methods": describe,
    "presets": lambda: {name: policy.to_dict() for name, policy in presets().items()},
    "families": _families,
    "checkpoints": bundled,
}
_SHOW: dict[str, Any] = {
    "methods": _show_methods,
    "presets": _show_presets,
    "families": _show_families,
    "checkpoints": lambda names: [f"  {name}" for name in names] or ["  none"],
}

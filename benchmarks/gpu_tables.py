"""The summary of `gpu/run.py` in docs/benchmarks.md; what was not measured is not in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from table_parts import markdown, measured_on, records, table

Unit = dict[str, Any]
TARGET = "speed-up with the index (target)"


@table("gpu")
def gpu() -> str:
    units = {line["unit"]: line for line in records("gpu") if not line["toy"]}
    if not units:
        return "No GPU has been measured yet.\n"
    text = ""
    for stage, write in WRITERS.items():
        mine = {name.partition("/")[2]: unit for name, unit in units.items() if name.partition("/")[0] == stage}
        good = {name: unit for name, unit in mine.items() if "error" not in unit}
        text += write(good) if good else ""
    failed = [f"`{name}`: {unit['error']}" for name, unit in units.items() if "error" in unit]
    text += f"Failed: {'; '.join(failed)}.\n" if failed else ""
    last = max(units.values(), key=lambda unit: unit["machine"]["date"])["machine"]
    return text + measured_on(last, f"CUDA {last['cuda']}, Triton {last['triton']}")


def correct(units: dict[str, Unit]) -> str:
    rows = [[name, "right" if unit["right"] else "**wrong**", worst(unit)] for name, unit in units.items()]
    return markdown(["against the reference", "", "largest difference"], rows) + "\n"


def worst(unit: Unit) -> str:
    return f"{max(row.get('pruned', row.get('output', 0.0)) for row in unit['rows']):.1e}"


def pruned(units: dict[str, Unit]) -> str:
    rows = [
        [name, row["variant"], f"{row['prefill_ms']:.1f} ms", f"{row['prefill_speedup']:.2f}",
         f"{row['to_oracle']:.3f}", f"{row['first_token_speedup']:.2f}", f"{row['decode_ms']:.2f} ms",
         f"{row['cache_mib']:.0f} MiB", "" if row["peak_mib"] is None else f"{row['peak_mib']:.0f} MiB"]
        for name, unit in units.items() for row in unit["rows"]
    ]  # fmt: skip
    head = [
        "shape of", "kept", "prefill", "speed-up", "of the oracle's", "first token", "a token", "cache",
        "peak beyond weights",
    ]  # fmt: skip
    hooks = ", ".join(f"{name} {unit['hook_ms_per_token']:.2f} ms" for name, unit in units.items())
    return markdown(head, rows) + f"\nHooks of an empty policy, per generated token: {hooks}.\n\n"


def sparse(units: dict[str, Unit]) -> str:
    attention = {n: u for n, u in units.items() if n.startswith("attention")}
    rows = [
        [f"{unit['tokens']}", f"`{row['pattern']}`", f"{row['ms']['dense']:.1f} ms",
         f"{row['speedup']:.2f} ({row['target'] or 'none'})", f"{row['without_build']:.2f}",
         f"{100 * row['kept']:.1f} %", f"{row['recall']:.3f}"]
        for unit in attention.values() for row in unit["rows"]
    ]  # fmt: skip
    head = ["tokens", "pattern", "dense", TARGET, "without the index", "cells", "recall"]
    text = markdown(head, rows) + "\n" if rows else ""
    prompts = [
        [f"{unit['tokens']}", f"`{name}`", f"{speed:.2f}", f"{100 * unit['kept'][name]:.1f} %"]
        for n, unit in units.items() if n not in attention for name, speed in unit["speedup"].items() if name != "dense"
    ]  # fmt: skip
    return text + (markdown(["tokens", "pattern", "first token", "cells"], prompts) + "\n" if prompts else "")


def screens(units: dict[str, Unit]) -> str:
    rows = [
        [row["policy"], f"{row['first_token_ms']:.0f} ms", f"{row['speedup']:.2f}", f"{row['limit']:.2f}",
         f"{row['patches']}", f"{row['tokens']}"]
        for unit in units.values() for row in unit["rows"]
    ]  # fmt: skip
    head = ["a screen of 2560 x 1600", "first token", "speed-up", "limit by FLOPs", "patches", "tokens, layer mean"]
    return markdown(head, rows) + "\n"


def published(units: dict[str, Unit]) -> str:
    rows = [
        [f"`{row['policy']}`, {unit['kept']} of {unit['of']}",
         f"{row['prefill_speedup']:.2f} ({unit['published']['prefill']})",
         f"{row['first_token_speedup']:.2f} ({unit['published']['first_token']})"]
        for unit in units.values() for row in unit["rows"]
    ]  # fmt: skip
    return markdown(["ZOO-Prune's setting", "prefill (published)", "first token (published)"], rows) + "\n"


WRITERS: dict[str, Callable[[dict[str, Unit]], str]] = {
    "correct": correct, "pruned": pruned, "sparse": sparse, "screens": screens, "published": published,
}  # fmt: skip

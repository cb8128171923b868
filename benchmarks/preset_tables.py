"""What `preset_prices.py` measured: Markdown for the page of benchmarks, and the prices that presets carry."""

from __future__ import annotations

import json
import re
from pathlib import Path

import vlmopt
from common import RESULTS
from kv_tables import later_questions
from pruning_tables import Blocks, accuracy, difference, images
from vlmopt.metrics.intervals import Interval

ROOT = Path(__file__).parents[1]
DATA, README, PAGE = ROOT / "vlmopt" / "policy" / "presets.json", ROOT / "README.md", ROOT / "docs" / "benchmarks.md"
BEGIN, END = "<!-- preset_tables.py -->\n", "<!-- end -->"
TITLES = {"questions": "questions about images", "clicks": "clicks on web pages", "clips": "questions about clips"}
WHERE = {"questions": "", "clicks": "clicks on web pages: ", "clips": "clips, which tiny-qwen never learned: "}
CACHE = "small-cache"  # the preset that evicts keys; its price is measured by kv_cache.py
CONTROLS = ("random", "uniform", "resize")
Rows = dict[str, Blocks]  # by what was asked for: a preset, or a control in one line


def read() -> dict[tuple[str, str], Rows]:
    """Return the newest row of every method and block of seeds, by checkpoint and task."""
    found: dict[tuple[str, str], Rows] = {}
    for text in (RESULTS / "preset_prices.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(text)
        rows = found.setdefault((record["checkpoint"], record["task"]), {})
        for row in record["rows"]:
            rows.setdefault(row["method"], {})[record["block"]] = {**row, "kinds": record["kinds"]}
    return dict(sorted(found.items(), reverse=True))  # tiny-qwen, which was asked everything, first


def tables() -> str:
    """Return Markdown: a table for every checkpoint and task, controls of the same budget beside each preset."""
    return "\n".join(line for key, rows in read().items() for line in table(*key, rows))


def table(checkpoint: str, task: str, rows: Rows) -> list[str]:
    dense = rows["dense"]
    asked = f"{images(dense)} in {len(dense)} blocks"
    controls = [name for name in CONTROLS if any(row.startswith(f"{name}:") for row in rows)]
    columns = ["preset", "right", "less dense, lowest to highest block", "layers", *controls]
    lines = [f"**{checkpoint}, {TITLES[task]}, dense {accuracy(dense)}** ({asked})", ""]
    lines += ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for name in rows:
        if name != "dense" and ":" not in name:
            beside = [accuracy(rows.get(f"{control}:keep_ratio={budget(name)}")) for control in controls]
            share = sum(row["layers"] for row in rows[name].values()) / len(rows[name])
            cells = [f"`{name}`", accuracy(rows[name]), str(difference(dense, rows[name])), f"{100 * share:.0f} %"]
            lines.append("| " + " | ".join([*cells, *beside]) + " |")
    return [*lines, ""]


def budget(preset: str) -> str:
    """Return the share that the last cut of a preset keeps; "" where pixels decide it."""
    last = vlmopt.presets()[preset].prune[-1]
    return "" if last.before_tower else f"{last.keep_ratio:g}"


def prices() -> dict[str, str]:
    """Return what is written behind "price", of every preset that was measured."""
    said: dict[str, list[str]] = {}
    for task in TITLES:
        losses: dict[str, list[str]] = {}
        for (_, asked), rows in read().items():
            for name in rows if asked == task else ():
                if name != "dense" and ":" not in name:
                    losses.setdefault(name, []).append(lost(rows["dense"], rows[name]))
        for name, found in losses.items():
            said.setdefault(name, []).append(f"{WHERE[task]}{' and '.join(found)} points")
    count, later = later_questions("key_diff", 0.2)
    said[CACHE] = [f"questions that come later, {count} images: {' and '.join(map(points, later))} points"]
    return {name: "; ".join(parts) for name, parts in said.items()}


def lost(dense: Blocks, other: Blocks) -> str:
    """Return points lost with their interval, in words: "1.0 (−0.2 to 2.1)"."""
    return points(difference(dense, other).over)


def points(gained: Interval) -> str:
    value, low, high = (100 * end + 0.0 for end in (-gained.value, -gained.high, -gained.low))
    return f"{value:.1f} ({low:.1f} to {high:.1f})".replace("-0.0", "0.0").replace("-", "−")


def write() -> None:
    """Put the prices into the presets, and what is made of both into the README and the page of benchmarks."""
    data = json.loads(DATA.read_text(encoding="utf-8"))
    measured, readme = prices(), README.read_text(encoding="utf-8")
    for row in data["presets"]:
        row["price"] = measured.get(row["name"], row["price"])
        mark = " (default)" if row["name"] == data["default"] else ""
        line = f"| {row['goal']} | `{row['name']}`{mark} | {row['keeps']} | {row['price']} | {row['avoid']} |"
        second = rf"^\|[^|]*\| `{row['name']}`.*\|$"  # a row of any other table has a preset elsewhere
        readme = re.sub(second, lambda _, line=line: line, readme, flags=re.MULTILINE)
    DATA.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    README.write_text(readme, encoding="utf-8")
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    PAGE.write_text(before + BEGIN + tables() + END + rest.partition(END)[2], encoding="utf-8")

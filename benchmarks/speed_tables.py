"""The tables of docs/speed.md and docs/sparse_patterns.md, from results."""

from __future__ import annotations

from typing import Any

from table_parts import markdown, measured_on, newest, records, table

ROUNDS = 9  # of a prefill, at least; fewer were a look
PIXELS = "files-grid-000000-1280x800.png"
NAMES = {"float32": "fp32", "bfloat16": "bf16"}
STRUCTURES = ("frames", "grid", "boundary", "blocks", "columns", "topics", "diagonals", "window", "mixed", "noise")


@table("ttft")
def ttft() -> str:
    return first_token("random")


@table("ttft-bundled")
def bundled() -> str:
    return first_token("bundled")


def first_token(model: str) -> str:
    found = next(line for line in reversed(records("ttft")) if line["model"] == model and line["repeats"] >= ROUNDS)
    rows = [
        [
            row["variant"].replace("dense", "all").replace("keep ", ""), f"{row['tokens']}", f"{row['median']:.0f} ms",
            f"{row['speedup']:.2f}", f"{row['flop_limit']:.2f}", f"{row['to_oracle']:.3f}",
        ]
        for row in found["rows"]
    ]  # fmt: skip
    head = ["kept", "tokens", "time", "speed-up", "limit by FLOPs", "time / oracle"]
    return markdown(head, rows) + measured_on(found["machine"], f"{found['repeats']} rounds")


@table("choosing")
def choosing() -> str:
    """Write what choosing costs as a share of the dense prefill, where three models were measured."""
    small, large = newest("ttft", model="random"), newest("scoring_cost")
    shares: dict[str, dict[str, str]] = {}
    for title, rows, key in (
        ("0.32 B", small["scoring"], "share_of_dense"),
        *((shape["model"], shape["rows"], "share_of_prefill") for shape in large["shapes"]),
    ):
        for row in rows:
            shares.setdefault(row["method"], {})[title] = f"{100 * row[key]:.3f} %"
    titles = ["0.32 B", *(shape["model"] for shape in large["shapes"])]
    body = [[f"`{name}`", *(found.get(title, "") for title in titles)] for name, found in shares.items()]
    return markdown(["method", *titles], body) + measured_on(large["machine"])


@table("peers")
def peers() -> str:
    found = newest("peers")
    rows = [
        [shape["model"], f"`{row['method']}`", f"{row['tokens']}", f"{row['ours_ms']:.2f} ms",
         f"{row['plain_ms']:.2f} ms", f"{row['ratio']:.2f}"]
        for shape in found["shapes"] for row in shape["selection"]
    ]  # fmt: skip
    text = markdown(["shape of", "method", "tokens", "ours", "plain rule", "ratio"], rows)
    first = [
        [shape["model"], f"`{row['variant']}`", f"{row['ms']:.0f} ms", f"{row['to_bare_hook']:.3f}"]
        for shape in found["shapes"] for row in shape["first_token"] if row["to_bare_hook"]
    ]  # fmt: skip
    if first:
        text += "\n" + markdown(["shape of", "method", "first token", "of the bare hook's"], first)
    return text + measured_on(found["machine"], f"{found['keep_ratio']:g} of the tokens kept, {NAMES[found['dtype']]}")


@table("correcting")
def correcting() -> str:
    small, real = newest("correction_cost", layers_of_7b=None), newest("correction_cost", layers_of_7b=3)
    other = {row["variant"]: row["ratio"] for row in real["rows"]}
    rows = [
        [row["variant"], f"{row['ratio']:.3f}", f"{other[row['variant']]:.3f}", f"{row['goal'] or ''}"]
        for row in small["rows"][1:]
    ]
    head = ["", "0.32 B, random weights", "layers of the shape of Qwen2.5-VL-7B, all corrected", "goal"]
    return markdown(head, rows) + measured_on(small["machine"], f"{small['steps']} steps")


@table("sparse-ttft")
def sparse_ttft() -> str:
    found = newest("sparse_ttft")
    rows = [
        [row["pattern"], f"{100 * row['work']:.1f} %", f"{row['median'] / 1e3:.1f} s", f"{row['speedup']:.2f}",
         f"{row['flop_limit']:.2f}", f"{row['index_ms'] / 1e3:.1f} s"]
        for row in found["rows"]
    ]  # fmt: skip
    head = ["pattern", "cells", "time to first token", "speed-up", "limit by FLOPs", "of it, building the index"]
    words = f"{found['tokens']} tokens, attention {100 * found['attention_share']:.0f} % of the dense FLOPs"
    return markdown(head, rows) + measured_on(found["machine"], words)


@table("pixels")
def pixels() -> str:
    found = newest("pixel_redundancy", picture=PIXELS)
    rows = [
        [row["policy"], f"{row['patches']}", f"{row['tokens']}", f"{row['vision_ms']:.0f} ms",
         f"{row['ttft_ms']['median']:.0f} ms", f"{row['ttft_speedup']:.2f}", f"{row['ttft_limit']:.2f}",
         f"{row['scoring_ms']:.0f} ms"]
        for row in found["rows"]
    ]  # fmt: skip
    head = [
        "policy", "patches", "tokens, layer mean", "tower", "time to first token", "speed-up", "limit by FLOPs",
        "choosing",
    ]  # fmt: skip
    return markdown(head, rows) + measured_on(found["machine"], f"{found['repeats']} rounds")


@table("recall")
def recall() -> str:
    """Write what every pattern keeps of every planted structure, and with a sink, at which cells."""
    found = newest("pattern_quality")
    alike = ("tokens", "heads", "head_dim", "gain", "seed")
    by_pattern: dict[str, dict[str, dict[str, Any]]] = {}
    for record in records("pattern_quality"):  # a pattern may be measured again alone
        for row in record["rows"] if all(record[key] == found[key] for key in alike) else ():
            by_pattern.setdefault(row["pattern"], {})[row["data"]] = row
    kinds = [kind for kind in STRUCTURES if any(kind in rows for rows in by_pattern.values())]
    body = []
    for name, rows in by_pattern.items():
        cells = [shown(rows.get(kind)) for kind in kinds]
        first, _, settings = name.partition(" (")
        body.append([f"`{first}`, {settings[:-1]}", *cells])
    words = f"{found['tokens']} tokens, {found['heads']} heads of {found['head_dim']}, planted logits {found['gain']:g}"
    return markdown(["pattern", *kinds], body) + measured_on(found["machine"], words)


def shown(row: dict[str, Any] | None) -> str:
    """Write recall @ cells (recall of the best blocks), in per cent; of pooled keys the error of the output."""
    if row is None:
        return ""
    if row["recall"] is None:
        return f"error {row['error']:.2f} @ {100 * row['cells']:.0f}"
    return f"{100 * row['recall']:.0f} @ {100 * row['cells']:.0f} ({100 * row['oracle']:.0f})"

"""The tables of docs/estimate.md and docs/tune.md, from results."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from table_parts import markdown, measured_on, newest, records, table

CLOSE = 0.15  # the goal for a predicted ratio
POLLS = "yes-or-no questions about generated scenes"


@table("ratios")
def ratios() -> str:
    """Write predicted ratios beside measured ones, the newest of every model."""
    runs = {row["model"]: line for line in records("estimate") for row in line["rows"]}
    rows = [(row, line) for model, line in runs.items() for row in line["rows"] if row["model"] == model]
    body = [
        [f"{row['model']}, {row['parameters'] / 1e9:.2f} B", f"`{row['policy']}`", f"{row['measured']:.2f}",
         f"{row['predicted']:.2f}", percent(row["deviation"])]
        for row, _ in rows
    ]  # fmt: skip
    close = sum(abs(row["deviation"]) <= CLOSE for row, _ in rows)
    rounds = " and ".join(dict.fromkeys(str(line["repeats"]) for line in runs.values()))
    words = f"{rounds} rounds. Within 15 %: {close} of {len(rows)} pairs"
    return markdown(["model", "policy", "measured", "predicted", "deviation"], body) + measured_on(
        rows[-1][1]["machine"], words
    )


@table("queue")
def queue() -> str:
    """Write times to the first token that were simulated beside those that were served."""
    found = newest("capacity")
    body = [
        [row["policy"], f"{row['share']:.0%}", f"{row['rate']:.1f}", *times(row, "p50"), *times(row, "p95")]
        for row in found["rows"]
    ]
    head = ["policy", "load", "requests/s", "p50, served", "simulated", "p95, served", "simulated"]
    words = f"vLLM {found['vllm']}, {found['requests']} requests a row, {found['new_tokens']} tokens each; CPU time"
    return markdown(head, body) + measured_on(found["machine"], words)


def times(row: dict[str, Any], quantity: str) -> Iterator[str]:
    served, simulated = row[f"{quantity}_served"], row[f"{quantity}_simulated"]
    yield f"{1e3 * served:.0f} ms"
    yield f"{1e3 * simulated:.0f} ms ({percent(simulated / served - 1)})"


@table("tuning-simulated")
def simulated() -> str:
    """Write what picking by the mean and the search of the package do where the truth is known."""
    found = newest("tuning", kind="simulation")
    body = []
    for row in found["rows"]:
        rule = "as people do" if row["holdout"] is None else f"`vlmopt tune`, hold-out of {row['holdout']}"
        shares = [f"{100 * row[key]:.1f} %" for key in ("unsafe", "nothing")]
        budget = f"{100 * row['budget']:g}"
        words = "point" if budget == "1" else "points"
        body.append([f"{budget} {words}", rule, *shares, f"{row['time']:.2f}", f"{row['answers']:.0f}"])
    edge = [f"{100 * row['returned']:.1f} %" for row in found["edge"]]
    said = (
        f"\n*{found['runs']} searches a row. Where every candidate loses the budget and a trace more, the rows of "
        f"`vlmopt tune` return one in {', '.join(edge[:-1])} and {edge[-1]} of the searches; 5 % are allowed.*\n"
    )
    return markdown(["budget", "rule", "unsafe", "nothing found", "time", "answers"], body) + said


@table("tuning-bundled")
def searched() -> str:
    """Write whole searches on the bundled checkpoints, and what came of many small ones on fresh images."""
    runs = {line["model"]: line for line in records("tuning") if line["kind"] == "end to end"}
    body = [
        [f"`{model}`", f"{sum(line['images'].values())}", f"{line['answers']}", f"`{line['policy']}`",
         f"{1 / line['speedup']:.0%}", f"{line['holdout']['difference']:+.1f}", f"{line['holdout']['low']:+.1f}",
         f"{line['seconds'] / 60:.1f} min"]
        for model, line in runs.items()
    ]  # fmt: skip
    head = ["model", "images", "answers", "policy", "tokens", "change, points", "at worst", "time"]
    many = newest("tuning", kind="repeated")
    fresh = [run["fresh"] for run in many["runs"]]
    said = (
        f"\n*Repeated: {len(fresh)} searches on {many['images']} other images each, `{many['model']}`, {POLLS}. "
        f"{many['kept']} of them keep the budget of {many['budget']:g} points on {many['fresh_images']} fresh images, "
        f"where what they returned changes the score by {min(fresh):+.1f} to {max(fresh):+.1f} points.*\n"
    )
    budgets = " and ".join(dict.fromkeys(f"{line['budget']:g}" for line in runs.values()))
    return (
        markdown(head, body)
        + measured_on(newest("tuning", kind="end to end")["machine"], f"budget {budgets} points")
        + said
    )


def percent(share: float) -> str:
    return f"{100 * share:+.1f} %"

"""The tables of docs/decoding.md, from results."""

from __future__ import annotations

import decoding_cost
from table_parts import markdown, measured_on, newest, paired, records, table


@table("decoding-quality")
def quality() -> str:
    found = newest("decoding_quality")
    head = ["checkpoint", "method", "POPE", "yes", "− greedy", "− constant on yes"]
    head += ["false objects, − greedy", "recall, − greedy", "words"]
    rows = []
    for row in found["rows"]:
        first = row["method"] == "greedy"
        cells = [row["checkpoint"], row["method"], f"{100 * row['accuracy']:.1f}", f"{100 * row['yes']:.1f}"]
        cells += ["" if first else paired(row["than greedy"])]
        cells += [paired(row["than a constant"]) if row["than a constant"] else ""]
        cells += ["" if first else paired(row[key]) for key in ("chair_i", "recall")]
        rows.append([*cells, f"{row['words']:.1f}"])
    last = found["rows"][-1]
    return markdown(head, rows) + measured_on(
        found["machine"], f"{last['images']} images, {last['questions']} questions"
    )


@table("decoding-cost")
def cost() -> str:
    return decoding_cost.tables() + measured_on(records("decoding_cost")[-1]["machine"])

"""The tables of docs/serving.md, from results."""

from __future__ import annotations

from typing import Any

from table_parts import markdown, measured_on, newest, table


@table("serving")
def images() -> str:
    """Write what every policy gains on images."""
    return gains(False, 1, 8)


@table("serving_videos")
def videos() -> str:
    """Write the same of clips, vLLM's own pruning of videos among them."""
    return gains(True, 1)


def gains(video: bool, *together: int) -> str:
    runs = [newest("serving", video=video, model="random", together=number) for number in together]
    rows, head = [[row["policy"], f"{row['prompt_tokens']}"] for row in runs[0]["rows"]], ["", "prompt tokens"]
    for number, run in zip(together, runs, strict=True):
        many = f"of {number} requests at once" if number > 1 else "of 1 request"
        head += [f"KV blocks {many}", f"first tokens {many}", "faster", "less work of all threads"]
        for cells, row in zip(rows, run["rows"], strict=True):
            faster, less = (f"{row[key]:.2f} ×" for key in ("times_faster", "times_less_work"))
            cells += [f"{row['kv_blocks']}", first(row), faster, less]
    rounds = " and ".join(dict.fromkeys(str(run["repeats"]) for run in runs))
    words = f"vLLM {runs[-1]['vllm']}, a random model of 0.2 B with a small tower in fp32; {rounds} rounds"
    return markdown(head, rows) + measured_on(runs[-1]["machine"], words)


def first(row: dict[str, Any]) -> str:
    return f"{row['first_ms']:.0f} ms ({row['p20']:.0f} to {row['p80']:.0f})"

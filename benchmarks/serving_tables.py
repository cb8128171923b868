"""The tables of docs/serving.md, from results."""

from __future__ import annotations

from typing import Any

from table_parts import markdown, measured_on, newest, table


@table("serving")
def images() -> str:
    """Write what every policy gains on images."""
    return gains(video=False)


@table("serving videos")
def videos() -> str:
    """Write the same of clips, vLLM's own pruning of videos among them."""
    return gains(video=True)


def gains(video: bool) -> str:
    alone, many = (newest("serving", video=video, model="random", together=n) for n in (1, 8))
    rows = [
        [one["policy"], f"{one['prompt_tokens']}", f"{eight['kv_blocks']}", first(one), f"{one['times_faster']:.2f} ×",
         first(eight), f"{eight['times_faster']:.2f} ×", f"{eight['times_less_work']:.2f} ×"]
        for one, eight in zip(alone["rows"], many["rows"], strict=True)
    ]  # fmt: skip
    head = ["", "prompt tokens", "KV blocks of 8", "first token, 1 request", "faster", "first tokens, 8 at once"]
    head += ["faster", "less work of all threads"]
    rounds = " and ".join(str(n) for n in sorted({alone["repeats"], many["repeats"]}))
    words = f"vLLM {many['vllm']}, a random model of 0.2 B with a small tower in fp32; {rounds} rounds"
    return markdown(head, rows) + measured_on(many["machine"], words)


def first(row: dict[str, Any]) -> str:
    return f"{row['first_ms']:.0f} ms ({row['p20']:.0f} to {row['p80']:.0f})"

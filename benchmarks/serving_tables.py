"""The table of docs/serving.md, from results."""

from __future__ import annotations

from table_parts import markdown, measured_on, newest, table


@table("serving")
def images() -> str:
    """Write what every policy gains for eight requests at once."""
    found = newest("serving", video="", model="random", together=8)
    rows = [
        [row["policy"], f"{row['prompt_tokens']}", f"{row['kv_blocks']}",
         f"{row['ms']:.0f} ms ({row['p20']:.0f} to {row['p80']:.0f})", f"{row['times_faster']:.2f} ×",
         f"{row['times_less_work']:.2f} ×"]
        for row in found["rows"]
    ]  # fmt: skip
    head = ["", "prompt tokens", "KV blocks", "first tokens, 8 at once", "faster", "less work of all threads"]
    words = f"vLLM {found['vllm']}, a random model of 0.2 B with a small tower in fp32; {found['repeats']} rounds"
    return markdown(head, rows) + measured_on(found["machine"], words)

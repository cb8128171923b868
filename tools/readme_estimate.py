"""Print the README's table of predictions: `python -m tools.readme_estimate`; a test compares the two."""

from __future__ import annotations

import vlmopt

MODEL, IMAGE = "Qwen/Qwen2.5-VL-7B-Instruct", "1280x800"
DEVICES = ("h100", "a100", "l40s", "4090")
POLICIES = ("balanced", "fastv:keep_ratio=0.1", "resize:keep_ratio=0.25")


def table() -> str:
    """Return the rows of the table as Markdown."""
    found = vlmopt.estimate(MODEL, image=IMAGE, policies=POLICIES, devices=DEVICES)
    names = " | ".join(f"`{policy}`" for policy in POLICIES)
    lines = [f"| device | dense | of it the tower | {names} |", "|---|---|---|" + "---|" * len(POLICIES)]
    for dense, rows in found.by_device():
        gains = " | ".join(f"{dense.ttft_ms / one.ttft_ms:.2f} x" for one in rows[1:])
        title = dense.title.partition(",")[0]
        lines.append(f"| {title} | {dense.ttft_ms:.0f} ms | {100 * dense.untouchable:.0f} % | {gains} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())

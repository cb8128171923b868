"""What do contrasts, their controls and a second look cost? Time and cache, as multiples of greedy, beside limits.

One scene is described by a bundled checkpoint, in tokens of a fixed number. All methods take turns, so that noise hits
them alike; a figure is the median of its rounds' ratios. A second stream runs everything twice: 2.0 is its limit, and a
method without one has 1.0. The second look hears two answers (its question's and the general instruction's) before it
gives its own about the masked image: three runs, and two where the general map is in the memory.

    python benchmarks/decoding_cost.py --checkpoint tiny-qwen
    python benchmarks/decoding_cost.py --tables        # Markdown of what was measured
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from hallucination import DECODINGS
from table_parts import markdown, records

import vlmopt
from common import append, interleaved
from hallucination_look import SECOND_LOOK, Masked
from hallucination_task import seed_of, task
from vlmopt.policy import Policy
from vlmopt.prompt import chat
from vlmopt.runtime.cache_kinds import cache_bytes
from vlmopt.synthetic.hallucination import DESCRIBE

TOKENS = 33  # generated: one with the prompt, the others alone
LIMITS = {"text alone": 2.0, "VCD": 2.0, "blank image": 2.0, SECOND_LOOK: 3.0}
METHODS = ("text alone", "VCD", "blank image", "plausibility", "DeCo", "DoLa")
Run = Callable[[], float]


@torch.inference_mode()
def generate(model: Any, inputs: dict[str, Any], tokens: int) -> tuple[float, int]:
    """Return milliseconds and bytes of the cache."""
    start = time.perf_counter()
    out = model.generate(
        **inputs, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, return_dict_in_generate=True
    )
    ms = (time.perf_counter() - start) * 1e3
    return ms, cache_bytes(out.past_key_values)


def measure(checkpoint: str, batch: int, repeats: int) -> dict[str, Any]:
    """Return milliseconds of every round, to the first token and to the last, and bytes, by method."""
    model, processor = vlmopt.load_checkpoint(checkpoint)
    image = task(1, 0, model.config.model_type, seed_of(0), ()).worlds[0].image
    text = chat(processor, "image", 1, DESCRIBE)

    def read(images: list[Any]) -> dict[str, Any]:
        return dict(processor(text=[text] * batch, images=[[i] for i in images], return_tensors="pt", padding=True))

    inputs, held = read([image] * batch), {}

    def run(name: str, tokens: int) -> Run:
        policy = Policy.load([DECODINGS[name]] if name in DECODINGS else [])

        def timed() -> float:
            with vlmopt.optimized(model, policy):
                ms, own = generate(model, inputs, tokens)
                held[name] = own + sum(step["cache_bytes"] for step in vlmopt.report(model).decoding)
            return ms

        return timed

    def look() -> float:
        start = time.perf_counter()
        seen = Masked(model, processor)
        generate(model, read([seen(image, DESCRIBE)] * batch), TOKENS)
        return (time.perf_counter() - start) * 1e3

    runs = {f"{name}, {n}": run(name, n) for name in ("greedy", *METHODS) for n in (1, TOKENS)}
    if batch == 1:
        runs[f"{SECOND_LOOK}, {TOKENS}"] = look
    times = interleaved(runs, repeats)
    return {"checkpoint": checkpoint, "batch": batch, "ms": times, "cache_bytes": held}


def tables() -> str:
    """Write what was measured last of each checkpoint and batch."""
    newest = {(cell["checkpoint"], cell["batch"]): cell for cell in records("decoding_cost")}
    head = ["checkpoint", "batch", "method", "first token", "each other token", "whole text", "limit", "cache"]
    rows = []
    for (checkpoint, batch), cell in newest.items():
        ms, held = cell["ms"], cell["cache_bytes"]
        for name in (*METHODS, SECOND_LOOK):
            whole = ms.get(f"{name}, {TOKENS}")
            if whole is None:
                continue
            first = ms.get(f"{name}, 1")
            row = [checkpoint, str(batch), name, ratio(first, ms["greedy, 1"]) if first else ""]
            row += [ratio(each(ms, name), each(ms, "greedy")) if first else "", ratio(whole, ms[f"greedy, {TOKENS}"])]
            row += [f"{LIMITS.get(name, 1.0):.1f}", f"{held[name] / held['greedy']:.2f}" if name in held else ""]
            rows.append(row)
    return markdown(head, rows)


def each(ms: dict[str, list[float]], name: str) -> list[float]:
    """Return what all tokens after the first took, of every round."""
    return [whole - first for whole, first in zip(ms[f"{name}, {TOKENS}"], ms[f"{name}, 1"], strict=True)]


def ratio(mine: list[float], plain: list[float]) -> str:
    return f"{statistics.median(a / b for a, b in zip(mine, plain, strict=True)):.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="tiny-qwen")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--tables", action="store_true", help="print Markdown of what was measured, and stop")
    options = parser.parse_args()
    if not options.tables:
        append("decoding_cost", measure(options.checkpoint, options.batch, options.repeats))
    print(tables())


if __name__ == "__main__":
    main()

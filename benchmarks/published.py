"""Published savings beside what `vlmopt estimate` predicts for them, with the deviation.

Papers seldom name everything that a time depends on: where the device is not stated, an A100 is assumed, and the
prediction is of this package's method, not of the released code. FLOPs depend on nothing but the model.

    python benchmarks/published.py
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import vlmopt
from vlmopt.estimation import Prediction

LLAVA, NEXT = "llava-hf/llava-1.5-7b-hf", "llava-hf/llava-v1.6-vicuna-7b-hf"
NEXT_13, QWEN = "llava-hf/llava-v1.6-vicuna-13b-hf", "Qwen/Qwen2.5-VL-7B-Instruct"


class Row(NamedTuple):
    """One published figure and the prompt that it is of."""

    what: str
    source: str
    model: str
    image: str
    policy: str
    published: float
    ratio: Callable[[Prediction, Prediction], float]  # of dense and policy


def flops(dense: Prediction, cut: Prediction) -> float:
    """Return what is left of the language model's FLOPs for the prompt."""
    return (cut.prefill_flops + cut.scoring_flops) / dense.prefill_flops


def prefill(dense: Prediction, cut: Prediction) -> float:
    """Return how much faster the language model reads the prompt, choosing included."""
    return dense.prefill_ms / (cut.prefill_ms + cut.scoring_ms)


def first(dense: Prediction, cut: Prediction) -> float:
    """Return how much faster the first token comes."""
    return dense.ttft_ms / cut.ttft_ms


ZOO, HALF = "zeroth_order:keep_tokens=160", "fastv:keep_ratio=0.5,layer=2"
SMALL, LARGE = "336x336", "672x672"
ROWS = (
    Row("FastV, K 2, half: FLOPs left", "arXiv 2403.06764", LLAVA, SMALL, HALF, 0.55, flops),
    Row("DivPrune, 9.8 %: FLOPs left", "arXiv 2503.02175", LLAVA, SMALL, "div_prune:keep_ratio=0.098", 0.16, flops),
    Row("PyramidDrop: FLOPs left", "arXiv 2410.17247", NEXT, LARGE, "pyramid_drop:keep_ratio=0.125", 0.45, flops),
    Row("SparseVLM, 192: FLOPs left", "arXiv 2410.04417", LLAVA, SMALL, "sparse_vlm:keep_ratio=0.191", 0.46, flops),
    Row("DivPrune, 64 tokens: prefill", "third party", LLAVA, SMALL, "div_prune:keep_tokens=64", 1.99, prefill),
    Row("ZOO-Prune, 160 tokens: prefill", "arXiv 2509.24837", NEXT, LARGE, ZOO, 2.59, prefill),
    Row("ZOO-Prune, 160 tokens: end to end; first token", "arXiv 2509.24837", NEXT, LARGE, ZOO, 2.30, first),
    Row(
        "VisionZip, 160 tokens: prefill", "arXiv 2412.04467", NEXT_13, LARGE, "vision_zip:keep_tokens=160", 8.0, prefill
    ),
    Row(
        "FocusUI, 1 329 of 5 319 tokens", "arXiv 2601.03928", QWEN, "2716x1540", "uniform:keep_tokens=1329", 1.44, first
    ),
)


def main() -> None:
    print("| figure | source | published | predicted | deviation |\n|---|---|---|---|---|")
    for row in ROWS:
        found = vlmopt.estimate(row.model, image=row.image, policies=[row.policy], devices=["a100"], dtype="float16")
        guess = row.ratio(*found.predictions)
        off = 100 * (guess / row.published - 1)
        print(f"| {row.what} | {row.source} | {row.published:.2f} | {guess:.2f} | {off:+.0f} % |")


if __name__ == "__main__":
    main()

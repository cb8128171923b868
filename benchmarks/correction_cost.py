"""What does correcting attention cost while decoding? Milliseconds per generated token, as a ratio to plain decoding.

A 0.3 B random-weight model behind 1 024 visual tokens. Goals: visual_sink <= 1.03, vision_heads <= 1.005. The limit is
1.0. Steps of all variants are timed in turns, so that noise hits them alike. With --layers, that many decoder layers of
the shape of Qwen2.5-VL-7B instead, all of them corrected: the ratio of the whole model is no worse.

    python benchmarks/correction_cost.py
    python benchmarks/correction_cost.py --layers 3
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from dataclasses import replace
from typing import Any

import torch
from shapes import build

import vlmopt
from common import append
from ttft import random_model
from vlmopt.attention_fix import AttentionFusion, Correction, HeadGuided, ImageBoost, VisionHeads, VisualSink
from vlmopt.measure import Spread

DIMS = (3, 17)
SINK = VisualSink(dims=DIMS, tau=3.0, min_visual_mass=0.0, min_nonsink_ratio=0.0)  # random weights: every gate open
VARIANTS: dict[str, Any] = {
    "plain": None,
    "policy without methods": vlmopt.Policy(),
    "visual_sink, exact": SINK,
    "visual_sink, fast": replace(SINK, passthrough="fast"),
    "vision_heads": VisionHeads(),
    "image_boost, exact": ImageBoost(),
    "image_boost, fast": ImageBoost(passthrough="fast"),
    "attention_fusion": AttentionFusion(),
    "head_guided": HeadGuided(),
}
GOALS = {"visual_sink, exact": 1.03, "visual_sink, fast": 1.03, "vision_heads": 1.005}


@torch.inference_mode()
def decode(models: dict[str, Any], inputs: dict[str, Any], steps: int) -> dict[str, list[float]]:
    """Return milliseconds of every step of every variant; the variants take turns at each step."""
    caches, times = {}, {name: [] for name in models}
    for name, model in models.items():
        caches[name] = model(**inputs, use_cache=True, logits_to_keep=1).past_key_values
    token = torch.tensor([[50]], device=inputs["input_ids"].device)
    for i in range(steps + 5):
        order = list(models.items())
        for name, model in order[i % len(order) :] + order[: i % len(order)]:
            start = time.perf_counter()
            model(input_ids=token, past_key_values=caches[name], use_cache=True)
            if token.is_cuda:
                torch.cuda.synchronize()
            if i >= 5:
                times[name].append((time.perf_counter() - start) * 1e3)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--layers", type=int, help="of the shape of Qwen2.5-VL-7B, instead of the 0.3 B model")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.layers:
        base, inputs = build("qwen2.5-vl-7b", args.layers, 1, args.device, torch.float32)
    else:
        base, inputs = random_model()
    base.to(args.device)
    inputs = {key: value.to(args.device) for key, value in inputs.items()}
    models = {name: shared_copy(base) for name in VARIANTS}
    for name, model in models.items():
        method = VARIANTS[name]
        if method is not None:
            everywhere = args.layers and isinstance(method, Correction)
            vlmopt.optimize(model, replace(method, layers="0:") if everywhere else method)
    raw = decode(models, inputs, args.steps)
    print(f"\n{'':>24} {'ms p50':>8} {'p20':>8} {'p80':>8} {'ratio to plain':>15} {'goal':>6}")
    rows = []
    for name, values in raw.items():
        t = Spread.of(values).to_dict()
        ratio = statistics.median(a / b for a, b in zip(values, raw["plain"], strict=True))  # neighbours in a turn
        rows.append({"variant": name, **t, "ratio": ratio, "goal": GOALS.get(name)})
        goal = f"{GOALS[name]:.3f}" if name in GOALS else ""
        print(f"{name:>24} {t['median']:>8.2f} {t['p20']:>8.2f} {t['p80']:>8.2f} {ratio:>15.4f} {goal:>6}")
    parameters = sum(p.numel() for p in base.parameters())
    record = {"parameters": parameters, "layers_of_7b": args.layers, "steps": args.steps, "rows": rows}
    print(f"appended to {append('correction_cost', record)}")


def shared_copy(model: Any) -> Any:
    """Copy the modules over the same weights, so that variants do not push one another out of the caches."""
    memo = {id(p): p for p in model.parameters()} | {id(b): b for b in model.buffers()}
    return copy.deepcopy(model, memo)


if __name__ == "__main__":
    main()

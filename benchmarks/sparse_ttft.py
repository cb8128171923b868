"""What does sparse attention buy a whole prefill? TTFT of a random-weight model on one long video, sparse and dense.

The weights are random, so attention has no structure and recall says nothing here; the patterns have fixed budgets,
and the table holds time beside the share of cells computed and the limit: attention at that share, the rest unchanged.

    python benchmarks/sparse_ttft.py                       # 16 k tokens, 0.1 B parameters
    python benchmarks/sparse_ttft.py --frames 16 --repeats 1
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

import vlmopt
from common import append, interleaved
from vlmopt.kernels.patterns import AShape, GridSparse, MinP, VerticalSlash
from vlmopt.measure import Spread
from vlmopt.policy import Policy
from vlmopt.prefill import SparsePrefill

IMAGE, VIDEO, START, END = 1000, 1001, 1002, 1003
SIDE = 16  # tokens per frame and side, so 256 per frame step
PATTERNS = {
    "a_shape 128 + 1024": AShape(sink=128, local=1024, tile=128, run=128),
    "vertical_slash 500 + 700": VerticalSlash(vertical=500, slash=700),
    "vertical_slash 1000 + 1024": VerticalSlash(vertical=1000, slash=1024),
    "grid, frame stride": GridSparse(stride="frame", strength=1.0),
    "min_p 0.87": MinP(),
}


def video_model(frames: int) -> tuple[Any, dict[str, torch.Tensor]]:
    """Return Qwen2.5-VL with random weights, 0.1 B parameters in the decoder, and a prompt with one video."""
    text = {
        "hidden_size": 768, "intermediate_size": 2560, "num_hidden_layers": 12, "num_attention_heads": 12,
        "num_key_value_heads": 4, "vocab_size": 1024, "max_position_embeddings": 65536, "tie_word_embeddings": True,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
        "rope_parameters": {"rope_type": "default", "mrope_section": [8, 12, 12], "rope_theta": 1e6},
    }  # fmt: skip
    vision = {
        "depth": 1, "hidden_size": 64, "intermediate_size": 64, "num_heads": 4, "out_hidden_size": 768,
        "fullatt_block_indexes": [], "patch_size": 14,
    }  # fmt: skip
    config = Qwen2_5_VLConfig(
        text_config=text, vision_config=vision, image_token_id=IMAGE, video_token_id=VIDEO,
        vision_start_token_id=START, vision_end_token_id=END,
    )  # fmt: skip
    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration(config).eval()
    grid = torch.tensor([[frames, 2 * SIDE, 2 * SIDE]])
    ids = [1, *range(10, 30), START, *[VIDEO] * (frames * SIDE * SIDE), END, *range(30, 60)]
    inputs = {
        "input_ids": torch.tensor([ids]),
        "attention_mask": torch.ones(1, len(ids), dtype=torch.long),
        "pixel_values_videos": torch.randn(frames * 4 * SIDE * SIDE, 3 * 2 * 14 * 14),
        "video_grid_thw": grid,
        "mm_token_type_ids": 2 * (torch.tensor([ids]) == VIDEO).long(),
    }
    return model, inputs


def ttft(model: Any, inputs: dict[str, Any], pattern: Any, found: dict[str, Any], name: str) -> float:
    """Return milliseconds from the call to the first logits, without the vision tower."""
    prefill = None if pattern is None else SparsePrefill(pattern=pattern, min_len=1, dense_layers=0, max_work=10)
    with vlmopt.optimized(model, Policy(prefill=prefill)):
        model.generate(**inputs, max_new_tokens=1, do_sample=False)
        report = vlmopt.report(model)
    layers = report.prefill
    found[name] = {
        "work": sum(e["work"] for e in layers) / len(layers) if layers else 1.0,
        "index_ms": sum(e["index_ms"] for e in layers),
        "attention_ms": sum(e["attention_ms"] for e in layers),
    }
    return report.ms["prefill"] or 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=64, help="frame steps of 256 tokens (default 64: 16 k tokens)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--pattern", action="append", choices=PATTERNS, help="default: all")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model, inputs = video_model(args.frames)
    model.to(args.device)
    inputs = {key: value.to(args.device) for key, value in inputs.items()}
    found: dict[str, Any] = {}
    chosen = {"dense": None} | {name: PATTERNS[name] for name in args.pattern or PATTERNS}
    raw = interleaved({n: partial(ttft, model, inputs, p, found, n) for n, p in chosen.items()}, args.repeats, 0)
    times = {name: Spread.of(values).to_dict() for name, values in raw.items()}
    dense = times["dense"]["median"]
    decoder = sum(p.numel() for p in model.model.language_model.parameters())
    tokens = inputs["input_ids"].shape[1]
    share = attention_share(model, tokens)
    print(f"\n{decoder / 1e6:.0f} M parameters, {tokens} tokens, attention {100 * share:.0f} % of the dense FLOPs")
    columns = ("p20", "p80", "speed-up", "FLOP limit", "cells", "index ms")
    print(f"{'':>28} {'ms p50':>9}" + "".join(f" {c:>10}" for c in columns))
    rows = []
    for name, t in times.items():
        row = {"pattern": name, **t, **found[name], "speedup": dense / t["median"]}
        row["flop_limit"] = 1 / (1 - share * (1 - row["work"]))
        rows.append(row)
        print(
            f"{name:>28} {t['median']:>9.0f} {t['p20']:>10.0f} {t['p80']:>10.0f} {row['speedup']:>9.2f}x "
            f"{row['flop_limit']:>9.2f}x {100 * row['work']:>8.1f} % {row['index_ms']:>10.0f}"
        )
    record = {"parameters": decoder, "tokens": tokens, "attention_share": share, "repeats": args.repeats}
    print(f"appended to {append('sparse_ttft', {**record, 'rows': rows})}")


def attention_share(model: Any, n: int) -> float:
    """Return attention's share of the decoder's FLOPs in a dense causal prefill of n tokens."""
    text = model.config.get_text_config()
    linear = 2.0 * sum(p.numel() for p in model.model.language_model.layers.parameters()) * n
    attention = text.num_hidden_layers * 2.0 * n * n * text.hidden_size
    return attention / (attention + linear)


if __name__ == "__main__":
    main()

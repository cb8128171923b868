"""Does `vlmopt estimate` predict ratios? Time to the first token, dense over policy, predicted and measured here.

Four models of 0.1 to 0.3 B random weights, each dense and under policies in turns in one process, one thread, CPU time
(so that other programs do not count). The predictions come from a calibration of the same machine, which knows nothing
of these models. Goal: every ratio within 15 %.

    python benchmarks/estimate.py --measured cpu.json    # calibrates first where the file is missing
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import transformers as hf

import vlmopt
from common import append
from vlmopt.estimation.calibration import calibrate, save
from vlmopt.estimation.source import find
from vlmopt.estimation.tokens import image_tokens

IMAGE, START, END, VOCABULARY = 1000, 1001, 1002, 1024
TEXT = 40
GOAL = 0.15
COMMON = [
    "balanced",
    "uniform:keep_ratio=0.1",
    "fastv:keep_ratio=0.25,layer=2",
    "pyramid_drop:keep_ratio=0.125,layers=[3,6,9]",
]
ROPE = {"rope_type": "default", "rope_theta": 10000.0}


def text(**more: Any) -> dict[str, Any]:
    return {
        "hidden_size": 896, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 14,
        "num_key_value_heads": 2, "vocab_size": VOCABULARY, "max_position_embeddings": 4096, "bos_token_id": 1,
        "eos_token_id": 2, "pad_token_id": 0, **more,
    }  # fmt: skip


def qwen2_5_vl() -> tuple[Any, tuple[int, int]]:
    """Make one with windows in the tower, 400 visual tokens."""
    tower = {
        "depth": 6, "hidden_size": 384, "intermediate_size": 1024, "num_heads": 6, "out_hidden_size": 896,
        "fullatt_block_indexes": [2, 5], "patch_size": 14, "window_size": 112,
    }  # fmt: skip
    rope = {**ROPE, "mrope_section": [8, 12, 12]}
    return hf.Qwen2_5_VLConfig(text_config=text(rope_parameters=rope), vision_config=tower, **ids()), (560, 560)


def qwen3_vl() -> tuple[Any, tuple[int, int]]:
    """Make one with DeepStack, heads wider than the hidden size, 400 visual tokens."""
    tower = {
        "depth": 6, "hidden_size": 384, "intermediate_size": 1536, "num_heads": 6, "out_hidden_size": 896,
        "patch_size": 16,
        "num_position_embeddings": 2304, "deepstack_visual_indexes": [1, 3, 5],
    }  # fmt: skip
    rope = {**ROPE, "mrope_section": [24, 20, 20], "mrope_interleaved": True}
    own = text(rope_parameters=rope, head_dim=128, num_attention_heads=8)
    return hf.Qwen3VLConfig(text_config=own, vision_config=tower, **ids()), (640, 640)


def llava() -> tuple[Any, tuple[int, int]]:
    """Make one with a CLS token in its tower, 256 visual tokens."""
    tower = hf.CLIPVisionConfig(
        hidden_size=512, intermediate_size=2048, num_hidden_layers=8, num_attention_heads=8, image_size=224,
        patch_size=14, projection_dim=256,
    )  # fmt: skip
    own = hf.LlamaConfig(**text(num_hidden_layers=16, hidden_size=1024, num_attention_heads=16, num_key_value_heads=16))
    return hf.LlavaConfig(text_config=own, vision_config=tower, image_token_index=IMAGE), (224, 224)


def internvl() -> tuple[Any, tuple[int, int]]:
    """Make one with four tiles and a thumbnail, 320 visual tokens."""
    tower = hf.InternVLVisionConfig(
        hidden_size=384, intermediate_size=1536, num_hidden_layers=6, num_attention_heads=6, image_size=[224, 224],
        patch_size=[14, 14],
    )  # fmt: skip
    return hf.InternVLConfig(text_config=hf.Qwen2Config(**text()), vision_config=tower, image_token_id=IMAGE), (
        448,
        448,
    )


def ids() -> dict[str, int]:
    return {
        "image_token_id": IMAGE, "video_token_id": 1003, "vision_start_token_id": START, "vision_end_token_id": END
    }  # fmt: skip


MODELS = {"qwen2_5_vl": qwen2_5_vl, "qwen3_vl": qwen3_vl, "llava": llava, "internvl": internvl}


def inputs_of(config: Any, size: tuple[int, int]) -> dict[str, torch.Tensor]:
    """One image of random pixels between a few tokens and a question."""
    seen = image_tokens(size, config, {})
    row = [5, START, *[IMAGE] * seen.tokens, END, *range(10, 10 + TEXT + seen.framing - 3)]
    tokens = torch.tensor([row])
    out = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    vision = config.vision_config
    if config.model_type.startswith("qwen"):
        h, w = seen.grids[0]
        out["pixel_values"] = torch.randn(h * w, 3 * 2 * vision.patch_size**2)
        out["image_grid_thw"] = torch.tensor([[1, h, w]])
        out["mm_token_type_ids"] = (tokens == IMAGE).long()
        return out
    side = vision.image_size if isinstance(vision.image_size, int) else vision.image_size[0]
    out["pixel_values"] = torch.randn(len(seen.grids), 3, side, side)
    return out


@torch.inference_mode()
def first_token(model: Any, inputs: dict[str, Any]) -> float:
    """CPU seconds of the forward that fills the cache and returns the last logits."""
    start = time.thread_time()
    model(**inputs, use_cache=True, logits_to_keep=1)
    return time.thread_time() - start


def measured(model: Any, inputs: dict[str, Any], policies: list[str], repeats: int) -> dict[str, float]:
    """Median seconds of every policy, in turns, after a round that does not count."""
    times: dict[str, list[float]] = {name: [] for name in policies}
    for turn in range(repeats + 1):
        for name in policies:
            with vlmopt.optimized(model, name):
                seconds = first_token(model, inputs)
            if turn:
                times[name].append(seconds)
    return {name: statistics.median(values) for name, values in times.items()}


def compare(kind: str, place: Path, repeats: int) -> list[dict[str, Any]]:
    """Predicted and measured ratios of one model."""
    config, size = MODELS[kind]()
    policies = COMMON + (["resize:keep_ratio=0.25"] if kind.startswith("qwen") else [])
    with tempfile.TemporaryDirectory() as directory:
        config.save_pretrained(directory)
        predicted = vlmopt.estimate(
            directory, image=size, text=TEXT, new_tokens=1, policies=policies, devices=["cpu"], dtype="float32",
            measured=place,
        )  # fmt: skip
        config = find(directory).config
    torch.manual_seed(0)
    model = hf.AutoModelForImageTextToText.from_config(config, dtype=torch.float32).eval()
    times = measured(model, inputs_of(config, size), ["dense", *policies], repeats)
    dense = predicted.of("dense", "cpu")
    rows = []
    for name in policies:
        ratio, guess = times["dense"] / times[name], dense.ttft_ms / predicted.of(name, "cpu").ttft_ms
        row = {"model": kind, "parameters": predicted.parameters, "policy": name, "measured": ratio, "predicted": guess}
        seconds = {"dense_s": times["dense"], "predicted_dense_s": dense.ttft_ms / 1e3}
        rows.append({**row, "deviation": guess / ratio - 1, **seconds})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measured", type=Path, default=Path("cpu.json"), help="calibration of this machine")
    parser.add_argument("--model", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if not options.measured.exists():
        save(options.measured, "cpu", calibrate("cpu"))
    rows = [row for kind in options.model for row in compare(kind, options.measured, options.repeats)]
    print(f"{'model':<12}{'policy':<48}{'measured':>9}{'predicted':>10}{'off by':>8}")
    for row in rows:
        print(
            f"{row['model']:<12}{row['policy']:<48}{row['measured']:>9.2f}{row['predicted']:>10.2f}"
            f"{100 * row['deviation']:>7.1f}%"
        )
    worst = max(abs(row["deviation"]) for row in rows)
    print(f"{len(rows)} pairs, worst {100 * worst:.1f} % (goal {100 * GOAL:.0f} %)")
    record = {"calibration": json.loads(options.measured.read_text()), "repeats": options.repeats, "rows": rows}
    print(f"appended to {append('estimate', record)}")


if __name__ == "__main__":
    main()

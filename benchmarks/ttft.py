"""Does dropping tokens really save their time? Prefill after the vision tower: dense, pruned, and an oracle.

The oracle is the same model handed only the kept tokens' embeddings and positions from the start, so nothing but the
work that cannot be avoided is left. Goal: pruned <= 1.10 x oracle. The limit of the speed-up is the FLOP ratio.
Then what choosing costs, as a share of the dense prefill: goals 1 % inside the LLM, 2 % before it.

    python benchmarks/ttft.py                 # bundled checkpoint and a 0.3 B random-weight model
    python benchmarks/ttft.py --model random --repeats 7
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

import vlmopt
from common import append, interleaved
from vlmopt.measure import Spread
from vlmopt.prompt import image_prompt
from vlmopt.pruning import CDPruner, Debias, DivPrune, FastV, PyramidDrop, SparseVLM, Uniform, ZeroOrder
from vlmopt.synthetic import screen

KEEP = (0.5, 0.25, 0.1)
SCORED = {
    "fastv": FastV(keep_ratio=0.11, layer=2),
    "debias(fastv), preset": Debias(FastV(keep_ratio=0.11, layer=2)),
    "debias(fastv), per sample": Debias(FastV(keep_ratio=0.11, layer=2), fit="per_sample"),
    "pyramid_drop, three cuts": PyramidDrop(keep_ratio=0.11, layers=(2, 4, 5)),
    "sparse_vlm, three cuts": SparseVLM(keep_ratio=0.11, layers=(2, 4, 5)),
    "zeroth_order": ZeroOrder(keep_ratio=0.11),
    "div_prune": DivPrune(keep_ratio=0.11),
    "cd_pruner": CDPruner(keep_ratio=0.11),
}
IMAGE, START, END = 1000, 1001, 1002


def random_model() -> tuple[Any, dict[str, torch.Tensor]]:
    """Build Qwen2.5-VL with random weights, 0.31 B in the decoder, and a prompt with 1 024 visual tokens."""
    text = {
        "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 26, "num_attention_heads": 16,
        "num_key_value_heads": 4, "vocab_size": 1024, "max_position_embeddings": 4096, "tie_word_embeddings": True,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
        "rope_parameters": {"rope_type": "default", "mrope_section": [8, 12, 12], "rope_theta": 1e6},
    }  # fmt: skip
    vision = {
        "depth": 2,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_heads": 4,
        "out_hidden_size": 1024,
        "fullatt_block_indexes": [0, 1],
        "patch_size": 14,
    }
    config = Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=IMAGE,
        video_token_id=1003,
        vision_start_token_id=START,
        vision_end_token_id=END,
    )
    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration(config).eval()
    grid = torch.tensor([[1, 64, 64]])
    ids = torch.tensor([[5, 6, 7, START, *[IMAGE] * 1024, END, *range(10, 42)]])
    inputs = {
        "input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": torch.randn(64 * 64, 3 * 2 * 14 * 14),
        "image_grid_thw": grid, "mm_token_type_ids": (ids == IMAGE).long(),
    }  # fmt: skip
    return model, inputs


def bundled_model() -> tuple[Any, dict[str, torch.Tensor]]:
    """Load the bundled checkpoint, with a generated screen."""
    model, processor = vlmopt.load_checkpoint("tiny-qwen")
    world = screen(seed=7)
    return model, image_prompt(processor, world.questions[0].text, [world.image])


@torch.inference_mode()
def prefill_ms(model: Any, inputs: dict[str, Any]) -> float:
    """Return milliseconds of one forward that fills a cache and returns the last logits."""
    synchronize(model)
    start = time.perf_counter()
    model(**inputs, use_cache=True, logits_to_keep=1)
    synchronize(model)
    return (time.perf_counter() - start) * 1e3


def synchronize(model: Any) -> None:
    if model.device.type == "cuda":
        torch.cuda.synchronize()


def measured(model: Any, inputs: dict[str, Any], policy: Any) -> float:
    """Return the prefill under `policy` without the vision tower's share."""
    with vlmopt.optimized(model, policy):
        total = prefill_ms(model, inputs)
        return total - (vlmopt.report(model).ms["vision"] or 0.0)


@torch.inference_mode()
def oracle(model: Any, inputs: dict[str, Any], keep_ratio: float) -> tuple[Callable[[], float], int]:
    """Return the same prefill on the kept tokens only: embeddings and positions are captured once, before measuring."""
    captured: dict[str, Any] = {}

    def capture(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        embeds, positions = kwargs["inputs_embeds"], kwargs.get("position_ids")
        if positions is None:
            positions = torch.arange(embeds.shape[1], device=embeds.device)[None]
        captured.update(embeds=embeds, positions=positions)

    handle = model.model.language_model.register_forward_pre_hook(capture, with_kwargs=True)
    with vlmopt.optimized(model, Uniform(keep_ratio=keep_ratio)):
        model(**inputs, logits_to_keep=1)
        kept = vlmopt.report(model).maps(0)[0].kept
    handle.remove()
    stay = inputs["input_ids"][0] != model.config.image_token_id
    stay[~stay] = kept.to(stay.device)
    short = {
        "inputs_embeds": captured["embeds"][:, stay],
        "position_ids": captured["positions"][..., stay],
        "attention_mask": torch.ones(1, int(stay.sum()), dtype=torch.long, device=stay.device),  # positions have gaps
    }
    return lambda: prefill_ms(model, short), int(stay.sum())


def flops(model: Any, n: int) -> float:
    """Return the decoder's FLOPs (2 per multiply-add) for a prefill of n tokens: linear layers and causal attention."""
    text = model.config.get_text_config()
    weights = sum(p.numel() for p in model.model.language_model.layers.parameters())
    return 2.0 * weights * n + text.num_hidden_layers * 2.0 * n * n * text.hidden_size


def run(name: str, repeats: int, device: str) -> None:
    model, inputs = {"random": random_model, "bundled": bundled_model}[name]()
    model.to(device)
    inputs = {key: value.to(device) for key, value in inputs.items()}
    length = inputs["input_ids"].shape[1]
    visual = int((inputs["input_ids"] == model.config.image_token_id).sum())
    variants: dict[str, Callable[[], float]] = {"dense": lambda: measured(model, inputs, "dense")}
    lengths = {"dense": length}
    for ratio in KEEP:
        ideal, lengths[f"keep {ratio}"] = oracle(model, inputs, ratio)
        variants[f"keep {ratio}"] = lambda r=ratio: measured(model, inputs, Uniform(keep_ratio=r))
        variants[f"oracle {ratio}"] = ideal
    raw = interleaved(variants, repeats)
    times = {key: Spread.of(values).to_dict() for key, values in raw.items()}
    parameters = sum(p.numel() for p in model.parameters())
    print(f"\n{name}: {parameters / 1e6:.1f} M parameters, {visual} visual of {length} prompt tokens, {repeats} rounds")
    print(
        f"{'':>10} {'tokens':>7} {'ms p50':>9} {'p20':>9} {'p80':>9} {'speed-up':>9} {'FLOP limit':>10} {'/ oracle':>9}"
    )
    rows = []
    for key in lengths:
        t = times[key]
        ideal_ms = raw[key.replace("keep", "oracle")]  # dense is its own oracle
        to_oracle = statistics.median(a / b for a, b in zip(raw[key], ideal_ms, strict=True))  # neighbours in a round
        row = {
            "variant": key, "tokens": lengths[key], **t, "speedup": times["dense"]["median"] / t["median"],
            "flop_limit": flops(model, length) / flops(model, lengths[key]), "to_oracle": to_oracle,
        }  # fmt: skip
        rows.append(row)
        print(
            f"{key:>10} {row['tokens']:>7} {t['median']:>9.1f} {t['p20']:>9.1f} {t['p80']:>9.1f} "
            f"{row['speedup']:>8.2f}x {row['flop_limit']:>9.2f}x {row['to_oracle']:>9.3f}"
        )
    scoring = scored(model, inputs, times["dense"]["median"], repeats)
    record = {"model": name, "parameters": parameters, "visual_tokens": visual, "repeats": repeats}
    path = append("ttft", {**record, "rows": rows, "scoring": scoring})
    print(f"appended to {path}")


@torch.inference_mode()
def scoring_ms(model: Any, inputs: dict[str, Any], method: Any) -> float:
    """Return the milliseconds that choosing took in the first forward with a method, probes and matrices included."""
    with vlmopt.optimized(model, method):
        model(**inputs, use_cache=True, logits_to_keep=1)
        return vlmopt.report(model).ms["scoring"] or 0.0


def scored(model: Any, inputs: dict[str, Any], dense: float, repeats: int) -> list[dict[str, Any]]:
    """Print what every method's choice costs, beside its goal; return it."""
    raw = interleaved({k: lambda m=m: scoring_ms(model, inputs, m) for k, m in SCORED.items()}, repeats)
    print(f"\n{'choosing':>28} {'ms p50':>9} {'p20':>9} {'p80':>9} {'of dense prefill':>17} {'goal':>6}")
    rows = []
    for key, values in raw.items():
        t, goal = Spread.of(values).to_dict(), 0.01 if SCORED[key].layer else 0.02
        rows.append({"method": key, **t, "share_of_dense": t["median"] / dense, "goal": goal})
        share = f"{100 * t['median'] / dense:.2f} %"
        print(f"{key:>28} {t['median']:>9.2f} {t['p20']:>9.2f} {t['p80']:>9.2f} {share:>17} {100 * goal:>4.0f} %")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=["bundled", "random", "both"], default="both")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    for name in ["bundled", "random"] if args.model == "both" else [args.model]:
        run(name, args.repeats, args.device)


if __name__ == "__main__":
    main()

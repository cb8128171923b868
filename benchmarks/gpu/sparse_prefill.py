"""Is sparse prefill faster than the fastest dense attention, and what does it lose? For a GPU.

Shapes of Qwen2.5-VL-7B (28 query heads, 4 key heads, 128 channels, bf16), inputs with planted structure like a video's.
First every registered pattern is checked against the oracle on small shapes. Then, per length: the fastest dense kernel
(flash or cuDNN), each pattern's index build and attention apart and together, "kept" (share of the causal triangle that
is computed), "recall" (share of the dense attention on kept keys, on sampled rows: mean, and that of the worst head),
TFLOP/s, beside the targets. Last the time to the first token of a decoder with random weights, from a few layers; its
flat attention makes patterns keep more than on a real model, so read its speed beside its "kept".

    python benchmarks/gpu/sparse_prefill.py
    python benchmarks/gpu/sparse_prefill.py --parts attention --lengths 131072 --patterns min_p grid --out results
    python benchmarks/gpu/sparse_prefill.py --interpret    # no GPU: tiny sizes in Triton's interpreter, no real speeds

Every part appends its JSON line to sparse_prefill_gpu.jsonl as soon as it is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from dense import dense_variants, milliseconds
from shapes import FULL, narrow, qwen
from transformers import Qwen2_5_VLForConditionalGeneration
from video_like import planted

import vlmopt
from common import RESULTS, interleaved, machine
from vlmopt.kernels.metrics import recall, sample_rows
from vlmopt.kernels.patterns import Prefill, registry
from vlmopt.kernels.patterns.base import blocks_to_index
from vlmopt.kernels.sparse_attention import Launch, run_plan
from vlmopt.kernels.sparse_attention.triton import tuned
from vlmopt.prefill import SparsePrefill
from vlmopt.runtime.components.sparse_prefill.layout import work

PARTS = ("check", "attention", "ttft")
LENGTHS = (16384, 32768, 65536, 131072, 262144, 524288)
TARGETS = {16384: 1.0, 32768: 1.8, 65536: 3.0, 131072: 5.0, 262144: 8.0}  # times dense, at a recall of 0.95
PATTERNS = ("sampled", "min_p", "vertical_slash", "grid", "x_attention", "a_shape", "blocks 5 %", "blocks 10 %")
SMALL: dict[str, dict[str, Any]] = {  # settings under which 600 tokens are not dense
    "minference_blocks": {"blocks": 3}, "vertical_slash": {"vertical": 64, "slash": 100}, "psa": {"exact_tail": 64},
    "a_shape": {"local": 128}, "flex_prefill": {"min_budget": 128}, "proxy_attn": {"min_budget": 128},
}  # fmt: skip
SECONDS = 25  # of dense attention per length and pattern; twenty rounds wherever they fit


def builder(name: str, **given: Any) -> Callable[[Prefill], list[Launch]]:
    """Return what makes a plan: a pattern; or "blocks N %", random blocks of 128 x 128 tokens, for kernel speed."""
    if not name.startswith("blocks"):
        return registry[name](**given).build

    def blocks(prefill: Prefill) -> list[Launch]:
        count = -(-prefill.rows // 128)
        keep = torch.rand(1, len(prefill.heads), count, count, device=prefill.device) < float(name.split()[1]) / 100
        keep = keep.tril() | torch.eye(count, dtype=torch.bool, device=prefill.device)
        return [Launch(blocks_to_index(keep, 128, 128, prefill))]

    return blocks


def check(
    device: str, dtype: torch.dtype, shape: tuple[int, int, int], names: Sequence[str] = (), tokens: int = 600
) -> list[dict[str, Any]]:
    """Compare the kernel with the oracle on registered patterns (default: all): the largest differences."""
    whole = planted(tokens, *shape, device, dtype)
    whole.modality[:, ::50] = 0
    found = []
    for title, prefill in (("whole", whole), ("chunk", replace(whole, q=whole.q[:, :, tokens // 2 + 50 :]))):
        for name in names or sorted(registry):
            launches = registry[name](**SMALL.get(name, {})).build(prefill)
            run = partial(run_plan, prefill, launches, return_lse=True)
            (out, lse), (want, want_lse) = run(backend="triton"), run(backend="reference")
            same = lse == want_lse  # -inf in both
            off = float((out - want).abs().max()), float((lse - want_lse).masked_fill(same, 0).abs().max())
            right = off[0] <= (1e-4 if dtype is torch.float32 else 3e-2) and off[1] <= 1e-3  # never NaN
            print(f"{title} {name:>18}: {off[0]:9.1e} {off[1]:9.1e}  {'' if right else 'WRONG'}", flush=True)
            found.append({"layout": title, "pattern": name, "output": off[0], "lse": off[1], "right": right})
    return found


def attention(
    prefill: Prefill, names: Sequence[str], repeats: int, device: str, seconds: float = SECONDS
) -> list[dict[str, Any]]:
    """Measure dense against every pattern at one length; medians of interleaved rounds."""
    dense = dense_variants(prefill, device)
    once = {name: min(milliseconds(run, device) for _ in range(2)) for name, run in dense.items()}
    best = min(once, key=once.__getitem__)
    rounds = max(3, min(repeats, int(seconds * 1e3 / once[best])))
    print(f"\n{prefill.rows} tokens; dense: {best} {once[best]:.2f} ms of {once}; {rounds} rounds")
    flops = 2 * prefill.q.shape[1] * prefill.q.shape[3] * prefill.rows**2
    sampled, rows = sample_rows(prefill), []
    for name in names:
        build = builder(name)
        launches = build(prefill)
        run = partial(run_plan, prefill, backend="triton")
        parts = {
            "dense": dense[best], "build": partial(build, prefill), "attention": partial(run, launches),
            "both": lambda run=run, build=build: run(build(prefill)),
        }  # fmt: skip
        raw = interleaved({part: partial(milliseconds, call, device) for part, call in parts.items()}, rounds)
        ms = {part: statistics.median(times) for part, times in raw.items()}
        kept = float(work(launches, prefill.q, prefill.k).mean())
        shares = recall(prefill, launches, sampled).nanmean((0, 2))
        row = {
            "pattern": name, "ms": ms, "rounds": rounds, "speedup": ms["dense"] / ms["both"],
            "without_build": ms["dense"] / ms["attention"], "target": TARGETS.get(prefill.rows), "kept": kept,
            "recall": float(shares.mean()), "recall_worst_head": float(shares.min()),
            "tflops": kept * flops / ms["attention"] / 1e9,
        }  # fmt: skip
        rows.append(row)
        print(
            f"{name:>16}: dense {ms['dense']:.2f}, build {ms['build']:.2f}, attention {ms['attention']:.2f} ms; "
            f"{row['speedup']:.2f}x (target {row['target'] or 'none'}; {row['without_build']:.2f}x without the build); "
            f"kept {kept:.3f}, recall {row['recall']:.3f}, worst head {row['recall_worst_head']:.3f}; "
            f"{row['tflops']:.0f} TFLOP/s",
            flush=True,
        )
    return rows


def decoder(layers: int, tokens: int, device: str, dtype: torch.dtype, tiny: bool) -> Any:
    """Build Qwen2.5-VL-7B with random weights and fewer layers."""
    config = qwen(layers, 1)
    text = config.text_config
    text.max_position_embeddings = tokens
    if tiny:
        narrow(config)
    with torch.device(device):
        return Qwen2_5_VLForConditionalGeneration._from_config(config, dtype=dtype, attn_implementation="sdpa").eval()


@torch.no_grad()  # the Triton kernel has no backward pass
def first_token(
    tokens: int, layers: int, names: Sequence[str], repeats: int, device: str, dtype: torch.dtype
) -> dict[str, Any]:
    """Measure the prefill of embedded tokens through the public API; a few layers, scaled to all 28."""
    torch.manual_seed(0)
    model = decoder(layers, tokens, device, dtype, tiny=device == "cpu")
    embeds = torch.randn(1, tokens, model.config.text_config.hidden_size, device=device, dtype=dtype) * 0.02
    prompt = {"inputs_embeds": embeds, "attention_mask": torch.ones(1, tokens, dtype=torch.long, device=device)}
    everywhere = {"min_len": 1, "dense_layers": 0, "dense_text": 0, "max_work": 1e9, "backend": "triton"}
    policies: dict[str, Any] = {"dense": "dense"}
    for name in names:
        if name in registry:
            policies[name] = vlmopt.Policy(prefill=SparsePrefill(pattern=registry[name](), **everywhere))

    shares = {"dense": 1.0}

    def run(name: str) -> float:
        with vlmopt.optimized(model, policies[name]):
            ms = milliseconds(lambda: model(**prompt, use_cache=True, logits_to_keep=1), device)
            if name != "dense":
                shares[name] = statistics.mean(layer["work"] for layer in vlmopt.report(model).prefill)
            return ms

    raw = interleaved({name: partial(run, name) for name in policies}, repeats)
    layer = {name: statistics.median(times) / layers for name, times in raw.items()}
    whole = FULL["qwen2.5-vl-7b"]
    gain = {name: whole * layer["dense"] / (2 * layer["dense"] + (whole - 2) * ms) for name, ms in layer.items()}
    for name, ms in layer.items():
        words = f"{ms:.2f} ms per layer, kept {shares[name]:.3f}, first token {gain[name]:.2f}x"
        print(f"{tokens} tokens, {name:>16}: {words}", flush=True)
    return {"layers": layers, "ms_per_layer": layer, "kept": shares, "speedup": gain}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--parts", nargs="+", choices=["check", "attention", "ttft"], default=["check", "attention", "ttft"]
    )
    parser.add_argument("--lengths", type=int, nargs="+", default=list(LENGTHS))
    parser.add_argument("--patterns", nargs="+", default=list(PATTERNS))
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--layers", type=int, default=4, help="decoder layers that are built for the first token")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the JSON lines")
    parser.add_argument("--interpret", action="store_true", help="tiny sizes on a CPU in Triton's interpreter")
    options = parser.parse_args()
    device, dtype, shape = "cuda", torch.bfloat16, (28, 4, 128)
    if options.interpret:
        if os.environ.get("TRITON_INTERPRET") != "1":  # Triton reads it when imported
            os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "TRITON_INTERPRET": "1"})
        device, dtype, shape = "cpu", torch.float32, (3, 1, 64)
        options.lengths, options.repeats, options.layers = [400], 1, 2
        options.patterns = ["min_p", "grid", "blocks 10 %"]

    def save(part: str, **found: Any) -> None:
        facts = {**machine(), "triton": version("triton"), "cuda": torch.version.cuda, "interpreted": options.interpret}
        options.out.mkdir(exist_ok=True)
        with (options.out / "sparse_prefill_gpu.jsonl").open("a") as file:
            file.write(json.dumps({"machine": facts, "part": part, **found}) + "\n")

    with torch.no_grad():
        if "check" in options.parts:
            save("check", patterns=check(device, dtype, (shape[0] // shape[1], 1, shape[2])))
        for tokens in options.lengths:
            tuned.cache_clear()  # what was measured on another length, or on the few tokens of the check, says nothing
            if "attention" in options.parts:
                prefill = planted(tokens, *shape, device, dtype, options.seed)
                rows = attention(prefill, options.patterns, options.repeats, device)
                save("attention", tokens=tokens, heads=shape, seed=options.seed, rows=rows)
                del prefill
            if "ttft" in options.parts:
                rounds = max(1, options.repeats // 4)
                found = first_token(tokens, options.layers, options.patterns, rounds, device, dtype)
                save("ttft", tokens=tokens, rounds=rounds, **found)


if __name__ == "__main__":
    main()

"""What whole models of real shapes cost with random weights: first token, decoding, memory, dense and pruned."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import pixel_redundancy
import torch
from dense import milliseconds
from PIL import Image
from shapes import IMAGE, build
from torch import Tensor

import vlmopt
from common import interleaved
from ttft import measured, oracle
from vlmopt.pruning import DivPrune, FocusUI, PixelRedundancy, Random, Scorer, Uniform, ZeroOrder
from vlmopt.scorers import TrainedScorer, facts, save

if TYPE_CHECKING:
    from stages import Scale

__all__ = ["build", "costs", "screen", "zoo_prune"]
ZOO = {"kept": 160, "prefill": 2.59, "first_token": 2.30}  # ZOO-Prune (arXiv 2509.24837), LLaVA-NeXT-7B
TILES = 5  # of LLaVA-NeXT, 576 tokens each


@torch.inference_mode()
def costs(name: str, scale: Scale, keep: tuple[float, ...]) -> dict[str, Any]:
    """Measure dense, `uniform` at every ratio beside its oracle, and `div_prune` at a quarter, in turns."""
    model, inputs = scale.build(name)
    policies: dict[str, Any] = {"dense": vlmopt.Policy(), **{f"keep {r}": Uniform(keep_ratio=r) for r in keep}}
    policies["div_prune 0.25"] = DivPrune(keep_ratio=0.25)
    ideal = {f"keep {ratio}": oracle(model, inputs, ratio)[0] for ratio in keep}
    runs: dict[str, Callable[[], float]] = {k: partial(measured, model, inputs, p) for k, p in policies.items()}
    runs |= {f"oracle of {k}": run for k, run in ideal.items()}
    runs |= {f"first token, {k}": partial(first, model, inputs, p, scale) for k, p in policies.items()}
    times = interleaved(runs, scale.repeats)
    ms = {k: statistics.median(v) for k, v in times.items()}
    bare, hooked = decoded(model, inputs, [None, vlmopt.Policy()], scale)
    rows = []
    for key, policy in policies.items():
        ratios = [a / b for a, b in zip(times[key], times.get(f"oracle of {key}", times[key]), strict=True)]
        row = {
            "variant": key, "prefill_ms": ms[key], "prefill_speedup": ms["dense"] / ms[key],
            "to_oracle": statistics.median(ratios), "first_token_ms": ms[f"first token, {key}"],
            "first_token_speedup": ms["first token, dense"] / ms[f"first token, {key}"],
            "decode_ms": decoded(model, inputs, [policy], scale)[0], **memory(model, inputs, policy),
        }  # fmt: skip
        rows.append(row)
        print(
            f"{name} {key:>14}: prefill {ms[key]:.1f} ms ({row['prefill_speedup']:.2f}x, {row['to_oracle']:.3f} of the "
            f"oracle), first token {row['first_token_speedup']:.2f}x, decoding {row['decode_ms']:.2f} ms a token",
            flush=True,
        )
    found = {"model": name, "visual_tokens": int((inputs["input_ids"] == IMAGE).sum()), "rows": rows}
    return {**found, "hook_ms_per_token": hooked - bare, "plain_decode_ms": bare}


def first(model: Any, inputs: dict[str, Tensor], policy: Any, scale: Scale) -> float:
    """Return milliseconds to the first logits, the tower included."""
    with vlmopt.optimized(model, policy):
        return milliseconds(lambda: model(**inputs, use_cache=True, logits_to_keep=1), scale.device)


def decoded(model: Any, inputs: dict[str, Tensor], policies: list[Any], scale: Scale) -> list[float]:
    """Return milliseconds per generated token under every policy (None: the model as it is), measured in turns."""

    def run(policy: Any) -> float:
        def time(tokens: int) -> float:
            return milliseconds(
                lambda: model.generate(**inputs, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False),
                scale.device,
            )

        if policy is None:
            return (time(1 + scale.decoded) - time(1)) / scale.decoded
        with vlmopt.optimized(model, policy):
            return (time(1 + scale.decoded) - time(1)) / scale.decoded

    times = interleaved({str(i): partial(run, policy) for i, policy in enumerate(policies)}, min(3, scale.repeats))
    return [statistics.median(values) for values in times.values()]


def memory(model: Any, inputs: dict[str, Tensor], policy: Any) -> dict[str, float | None]:
    """Return MiB of the cache, and at its peak of a prefill beyond the weights (None without a GPU)."""
    cuda = model.device.type == "cuda"
    with vlmopt.optimized(model, policy):
        before = torch.cuda.memory_allocated() if cuda else 0
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        out = model(**inputs, use_cache=True, logits_to_keep=1)
        peak = (torch.cuda.max_memory_allocated() - before) / 2**20 if cuda else None
    held = sum(x.numel() * x.element_size() for layer in out.past_key_values.layers for x in (layer.keys, layer.values))
    return {"cache_mib": held / 2**20, "peak_mib": peak}


def screen(scale: Scale) -> dict[str, Any]:
    """Measure a drawn screen, every pixel doubled on a GPU, under methods before the tower and before the LLM."""
    model, _ = scale.build("qwen2.5-vl-7b")
    image = pixel_redundancy.screen().resize(scale.screen, Image.Resampling.NEAREST)
    inputs = {name: value.to(model.device) for name, value in pixel_redundancy.prompt(image).items()}
    inputs["pixel_values"] = inputs["pixel_values"].to(scale.dtype)
    with tempfile.TemporaryDirectory() as folder:
        width = model.get_input_embeddings().weight.shape[1]
        save(TrainedScorer(Scorer(width), torch.zeros(width), facts(model)), folder)
        focus = FocusUI(keep_ratio=0.3, scorer=folder)
        policies: dict[str, Any] = {
            "dense": vlmopt.Policy(), "pixel_redundancy": PixelRedundancy(), "focus_ui 0.3": focus,
            "pixel_redundancy, focus_ui 0.3": [PixelRedundancy(), focus], "random 0.3": Random(keep_ratio=0.3),
        }  # fmt: skip
        found: dict[str, dict[str, Any]] = {name: {} for name in policies}
        runs = {n: partial(pixel_redundancy.measured, model, inputs, p, found[n]) for n, p in policies.items()}
        times = interleaved(runs, min(5, scale.repeats))
    dense = statistics.median(times["dense"])
    rows = []
    for name, values in times.items():
        ms = statistics.median(values)
        row = {"policy": name, "first_token_ms": ms, "speedup": dense / ms, "patches": found[name]["patches"]}
        row |= {"limit": found["dense"]["flops"] / found[name]["flops"], "tokens": found[name]["tokens"]}
        rows.append(row)
        print(f"{name:>32}: first token {ms:.1f} ms, {row['speedup']:.2f}x of {row['limit']:.2f}x", flush=True)
    return {"size": list(scale.screen), "rows": rows}


@torch.inference_mode()
def zoo_prune(scale: Scale) -> dict[str, Any]:
    """Measure ZOO-Prune's setting on LLaVA-1.5-7B with as many visual tokens as LLaVA-NeXT: five images of 576."""
    model, one = scale.build("llava-1.5-7b")
    ids = torch.cat([one["input_ids"][:, :3], *[one["input_ids"][:, 3:579]] * TILES, one["input_ids"][:, 579:]], 1)
    pixels = one["pixel_values"].repeat(TILES, 1, 1, 1).to(scale.dtype)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}
    share = ZOO["kept"] / (TILES * 576)
    policies = {
        "dense": vlmopt.Policy(),
        "zeroth_order": ZeroOrder(keep_ratio=share),
        "random": Random(keep_ratio=share),
    }
    runs: dict[str, Callable[[], float]] = {k: partial(measured, model, inputs, p) for k, p in policies.items()}
    runs |= {f"first token, {k}": partial(first, model, inputs, p, scale) for k, p in policies.items()}
    ms = {name: statistics.median(values) for name, values in interleaved(runs, scale.repeats).items()}
    rows = []
    for name in list(policies)[1:]:
        row = {"policy": name, "prefill_speedup": ms["dense"] / ms[name]}
        row["first_token_speedup"] = ms["first token, dense"] / ms[f"first token, {name}"]
        rows.append(row)
        words = f"prefill {row['prefill_speedup']:.2f}x, first token {row['first_token_speedup']:.2f}x"
        print(f"{name}: {words}; published: {ZOO['prefill']}x and {ZOO['first_token']}x", flush=True)
    return {"kept": ZOO["kept"], "of": TILES * 576, "published": ZOO, "ms": ms, "rows": rows}

"""What does choosing cost? Milliseconds of every selector, as a share of the dense prefill that it is meant to shorten.

Models have the shapes of LLaVA-1.5-7B (576 visual tokens) and Qwen2.5-VL-7B (1 024) with random weights. Where memory
forbids all layers, a few are built and the dense prefill is scaled to the full depth; scoring is not scaled, since a
selector acts once (PyramidDrop and SparseVLM: at each of their cuts, here one). ZeroOrder derives matrices from the
projector's weights at the first prompt and keeps them; its rows are those of later prompts where they do not say
otherwise. Prefill is the decoder's, without the vision tower; everything is read from `vlmopt.report`. "greedy" shows
the part that grows with the number kept.

    python benchmarks/scoring_cost.py                                        # 2 layers of each shape
    python benchmarks/scoring_cost.py --device cuda --dtype bfloat16 --layers 32 --tower-layers 24
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch
from shapes import FULL, build
from torch import Tensor

import vlmopt
from common import append, interleaved
from vlmopt.measure import Spread
from vlmopt.pruning import (
    DART,
    CDPruner,
    CenPrune,
    CoreMatching,
    Debias,
    DivPrune,
    FastV,
    HiPrune,
    HoloV,
    InstructionSimilarity,
    MMTok,
    PyramidDrop,
    Random,
    Scope,
    SparseVLM,
    UIGraph,
    Uniform,
    VisionZip,
    VisPruner,
    ZeroOrder,
    ZipVL,
    ui_graph,
)
from vlmopt.pruning.greedy import farthest
from vlmopt.pruning.similarity import largest_volume

KEEP = 0.11
FIRST = "zeroth_order, first prompt"


def methods(whole_block: int) -> dict[str, Any]:
    """Return every selector; in-LLM ones cut before layer 1, the deepest that two layers allow."""
    at = {"keep_ratio": KEEP, "layer": 1}
    return {
        "random": Random(keep_ratio=KEEP),
        "uniform": Uniform(keep_ratio=KEEP),
        "fastv": FastV(**at),
        "debias(fastv), preset": Debias(FastV(**at)),
        "debias(fastv), per sample": Debias(FastV(**at), fit="per_sample"),
        "pyramid_drop, one cut": PyramidDrop(keep_ratio=KEEP, layers=(1,)),
        "sparse_vlm, one cut": SparseVLM(keep_ratio=KEEP, layers=(1,)),
        "zipvl": ZipVL(layer=1),
        "core_matching": CoreMatching(layer=1),
        "zeroth_order": ZeroOrder(keep_ratio=KEEP),
        FIRST: ZeroOrder(keep_ratio=KEEP),
        "zeroth_order, closed form": ZeroOrder(keep_ratio=KEEP, estimator="closed_form"),
        "zeroth_order, rank 128": ZeroOrder(keep_ratio=KEEP, estimator="closed_form", rank=128),
        "div_prune": DivPrune(keep_ratio=KEEP),
        "cd_pruner": CDPruner(keep_ratio=KEEP),
        "cen_prune": CenPrune(keep_ratio=KEEP),
        "vision_zip": VisionZip(keep_ratio=KEEP, tower_layer=whole_block),
        "vis_pruner": VisPruner(keep_ratio=KEEP, tower_layer=whole_block),
        "ui_graph": UIGraph(keep_ratio=KEEP),
        "instruction_similarity": InstructionSimilarity(keep_ratio=KEEP),
        "holov": HoloV(keep_ratio=KEEP, tower_layer=whole_block),
        "dart": DART(keep_ratio=KEEP),
        "scope": Scope(keep_ratio=KEEP, tower_layer=whole_block),
        "mmtok": MMTok(keep_ratio=KEEP),
        "hiprune": HiPrune(keep_ratio=KEEP, object_layer=whole_block, tower_layer=whole_block),
    }


@torch.inference_mode()
def once(model: Any, inputs: dict[str, Tensor], policy: Any, stage: str, before: int = 0) -> float:
    """Return milliseconds of one stage of the report, after `before` prompts that are not counted."""
    with vlmopt.optimized(model, policy):
        for _ in range(before + 1):
            model(**inputs, use_cache=True, logits_to_keep=1)
        return vlmopt.report(model).ms[stage] or 0.0


def costs(name: str, options: argparse.Namespace) -> dict[str, Any]:
    dtype = getattr(torch, options.dtype)
    model, inputs = build(name, options.layers, options.tower_layers, options.device, dtype)
    visual = int((inputs["input_ids"] == 1000).sum())
    blocks = getattr(model.config.vision_config, "fullatt_block_indexes", [-1])
    runs: dict[str, Any] = {"dense": lambda: once(model, inputs, vlmopt.Policy(), "prefill")}
    for label, method in methods(blocks[-1]).items():
        keeps = isinstance(method, ZeroOrder) and label != FIRST  # matrices derived from the projector's weights
        runs[label] = lambda m=method, before=int(keeps): once(model, inputs, m, "scoring", before)
    times = interleaved(runs, options.repeats)
    scale = FULL[name] / options.layers
    dense = statistics.median(times["dense"]) * scale
    built = "all" if options.layers == FULL[name] else f"{options.layers} of {FULL[name]}, prefill scaled by {scale:g}"
    print(f"\n{name}: {visual} visual tokens, {options.dtype} on {options.device}, decoder layers built: {built}")
    print(f"dense prefill {dense:.0f} ms (median of {options.repeats} interleaved rounds)")
    rows = []
    for label, values in times.items():
        if label != "dense":
            spread = Spread.of(values)
            rows.append({"method": label, **spread.to_dict(), "share_of_prefill": spread.median / dense})
            print(f"  {label:28s} {spread.median:9.2f} ms  {100 * spread.median / dense:7.3f} % of prefill")
    return {"model": name, "visual_tokens": visual, "layers_built": options.layers, "dense_ms": dense, "rows": rows}


@torch.inference_mode()
def greedy(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return milliseconds of the greedy choices against k, n = 1 024 tokens of width 4 096."""
    features = torch.randn(1024, 4096, device=options.device)
    weights = torch.rand(1024, device=options.device)
    rows = []
    print("\ngreedy, 1 024 tokens of width 4 096:   max-min x weight | determinant")
    for k in (32, 64, 128, 256, 512):
        spent = {}
        for label, choose in (("farthest", farthest), ("largest_volume", largest_volume)):
            times = [
                timed(lambda f=choose, k=k: f(features, k, weights), options.device) for _ in range(options.repeats)
            ]
            spent[label] = statistics.median(times)
        rows.append({"k": k, **spent})
        print(f"  k = {k:4d}  {spent['farthest']:9.1f} ms | {spent['largest_volume']:9.1f} ms")
    return rows


def timed(run: Any, device: str) -> float:
    """Return milliseconds of one call."""
    wait = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    wait()
    start = time.perf_counter()
    run()
    wait()
    return (time.perf_counter() - start) * 1e3


@torch.inference_mode()
def screens(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return milliseconds of the UI graph of a 2 800 x 1 680 screen of 28-px cells, next to reading its pixels once."""
    coords = torch.cartesian_prod(torch.arange(1), torch.arange(60), torch.arange(100)).to(options.device)
    frame, scale = coords[:, 0], torch.ones(3, device=options.device)
    rows = []
    print("\nUI graph, 6 000 cells of 28 px, 70 % of them plain:   graph | reading the pixels once")
    for copies in (1, 2):
        pixels = torch.rand(len(coords), 3, copies * 28 * 28, device=options.device)
        pixels[torch.rand(len(coords), device=options.device) < 0.7] = 0.5
        runs = {
            "ui_graph": lambda p=pixels: timed(lambda: ui_graph(p, scale, coords, frame), options.device),
            "read": lambda p=pixels: timed(p.sum, options.device),
        }
        times = {name: statistics.median(values) for name, values in interleaved(runs, options.repeats).items()}
        rows.append({"temporal_copies": copies, "threads": torch.get_num_threads(), **times})
        print(f"  temporal copies: {copies}  {times['ui_graph']:8.1f} ms | {times['read']:8.1f} ms")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(FULL), nargs="+", default=list(FULL))
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--tower-layers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32")
    options = parser.parse_args()
    if options.layers < 2:
        parser.error("--layers must be 2 or more: selectors inside the LLM need a layer before their cut")
    shapes = [costs(name, options) for name in options.shape]
    record = {"dtype": options.dtype, "shapes": shapes, "greedy": greedy(options), "screens": screens(options)}
    print(f"appended to {append('scoring_cost', record)}")


if __name__ == "__main__":
    main()

"""How much attention does each pattern keep, and how much of the map does it read for that?

Queries and keys are noise with planted structure: topics that come back, single keys, diagonals, a window with a sink,
columns of a video's frames, or all of it. "recall" is the share of the dense attention on kept keys, mean and 5th
percentile over rows; "cells" the share of pairs of row and key below the diagonal that are read, "blocks" the share of
64 x 64 blocks with such a pair; "error" that of the output. Beside each pattern: the recall of the best blocks there
are (they take all of the dense attention to find), of random ones with sink and diagonal, and of an A-shape, all with
as many cells. "of oracle" is the first by the second; single columns may pass 1, since they are finer than blocks.
Pooled keys (psa) are no part of the dense attention and have no recall; compare their error.

    python benchmarks/pattern_quality.py                  # 4096 tokens, 4 heads
    python benchmarks/pattern_quality.py --quick
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from common import append
from vlmopt.kernels.metrics import density, output_error, recall, recall_summary, sample_rows
from vlmopt.kernels.patterns import Pattern, Prefill, registry
from vlmopt.kernels.sparse_attention import run_plan
from vlmopt.kernels.yardsticks import best_blocks, block_mass, causal_cells, yardstick

BLOCK = 64
FRAME = 196  # tokens from frame to frame
TITLES = ("cells", "blocks", "recall", "p5", "error", "oracle", "of oracle", "random", "a_shape")
GAIN = 8.0  # logits of planted cells above the noise, whose deviation is 1

# Settings from sparse to dense.
SETTINGS: dict[str, list[dict[str, Any]]] = {
    "a_shape": [{"sink": 64, "local": 256}, {"sink": 64, "local": 1024}],
    "tri_shape": [{"sink": 64, "local": 256}],
    "vertical_slash": [{"vertical": 64, "slash": 128}, {"vertical": 250, "slash": 512}],
    "grid": [{"diagonals": False}, {}],
    "min_p": [{"tau": 0.95}, {"tau": 0.87}, {"tau": 0.5}],
    "minference_blocks": [{"blocks": 4}, {"blocks": 8}, {"blocks": 16}],
    "flex_prefill": [{"coverage": 0.5, "min_budget": 128}, {"coverage": 0.8, "min_budget": 128}, {"min_budget": 128}],
    "x_attention": [{"threshold": 0.5}, {"threshold": 0.7}, {"threshold": 0.9}],
    "proxy_attn": [{"coverage": 0.5, "min_budget": 256}, {"coverage": 0.8, "min_budget": 256}, {"min_budget": 256}],
    "pbs_attn": [{"threshold": 0.5}, {"threshold": 0.7}, {"threshold": 0.9}],
    "psa": [{"energy": (0.3, 0.4, 0.5, 0.5)}, {}],
}
COARSE = {"flex_prefill", "x_attention", "proxy_attn", "pbs_attn"}  # 128 by default


def columns(keys: Tensor, q: Tensor, k: Tensor, strength: float, channel: int) -> None:
    """Every row likes the keys [h, n]."""
    q[0, :, :, channel] = strength
    k[0, :, :, channel] = torch.zeros_like(k[0, :, :, 0]).scatter_(1, keys, strength)


def bump(q: Tensor, k: Tensor, frequencies: Tensor, offset: Tensor, strength: float, channels: slice) -> None:
    """Rows like keys at distance `offset` [h]: sines of row and key that are in phase there only."""
    place = torch.arange(q.shape[2])
    amplitude = strength / len(frequencies) ** 0.5
    for x, shift in ((q, offset), (k, torch.zeros_like(offset))):
        angle = frequencies * (place - shift[:, None])[..., None]
        x[0, :, :, channels] = amplitude * torch.cat([angle.cos(), angle.sin()], -1)


def topics(q: Tensor, k: Tensor, strength: float, generator: torch.Generator) -> None:
    """Stretches of 128 tokens belong to one of 16 topics and share a direction."""
    heads, rows, d = q.shape[1:]
    of = torch.randint(16, (heads, -(-rows // 128)), generator=generator).repeat_interleave(128, 1)[:, :rows]
    direction = torch.nn.functional.normalize(torch.randn(heads, 16, d, generator=generator), dim=-1)
    shared = direction.gather(1, of[..., None].expand(-1, -1, d)) * strength
    q += shared
    k += shared


def planted(kind: str, rows: int, heads: int, seed: int, d: int = 64) -> Prefill:
    """One layer; every head has its own positions of the same kind of structure."""
    generator = torch.Generator().manual_seed(seed)
    q, k, v = torch.randn(3, 1, heads, rows, d, generator=generator).unbind()
    strength = (GAIN * d**0.5) ** 0.5
    every = kind == "all of it"
    if kind == "topics" or every:
        topics(q, k, strength, generator)
    if kind == "single keys" or every:
        columns(torch.randint(rows // 2, (heads, 24), generator=generator), q, k, strength, 0)
    if kind == "diagonals" or every:
        frequencies = torch.rand(12, generator=generator) * 3
        offset = torch.randint(64, rows // 2, (heads,), generator=generator)
        bump(q, k, frequencies, offset, strength, slice(1, 25))
    if kind == "window and sink" or every:
        columns(torch.arange(4).expand(heads, -1), q, k, strength, 25)
        frequencies = torch.rand(10, generator=generator) * 0.06
        bump(q, k, frequencies, torch.zeros(heads, dtype=torch.long), strength, slice(26, 46))
    if kind == "frames" or every:
        phase = torch.randint(FRAME, (heads, 1), generator=generator)
        columns(phase + torch.arange(0, rows - FRAME, FRAME), q, k, strength, 46)
    return Prefill(q, k, d**-0.5, torch.arange(heads), v=v, frame=FRAME)


KINDS = ("topics", "single keys", "diagonals", "window and sink", "frames", "all of it", "noise")


def measured(pattern: Pattern, prefill: Prefill, rows: Tensor, dense: Tensor, mass: Tensor) -> dict[str, float | None]:
    """Means over heads of one pattern on one layer, and its yardsticks; no recall where keys are pooled."""
    launches = pattern.build(prefill)
    shares = density(prefill, launches, BLOCK, BLOCK)
    cells = shares.cells * causal_cells(prefill, BLOCK, BLOCK).sum((2, 3))  # [1, H]
    plans = {kind: yardstick(kind, prefill, cells, BLOCK, BLOCK) for kind in ("random", "a_shape")}
    plans["oracle"] = best_blocks(prefill, mass, torch.zeros_like(mass, dtype=torch.bool), cells, BLOCK, BLOCK)
    out = run_plan(prefill.q, prefill.k, prefill.v, launches, scale=prefill.scale)
    row = {
        "cells": shares.cells.mean(),
        "blocks": shares.blocks.mean(),
        "error": output_error(out, dense).mean(),
        **{kind: recall(prefill, plan, rows).nanmean() for kind, plan in plans.items()},
    }
    if all(launch.k is None for launch in launches):
        found = recall_summary(recall(prefill, launches, rows))
        row |= {"recall": found["mean"].mean(), "p5": found["p5"].mean()}
        row["of oracle"] = row["recall"] / row["oracle"]
    return {title: float(row[title]) if title in row else None for title in TITLES}


def settings(quick: bool) -> list[tuple[str, Callable[[], Pattern]]]:
    """Name with its settings, and how to make it."""
    made = []
    for name, options in SETTINGS.items():
        for given in options[:1] if quick else options:
            size = {"tile": BLOCK, "run": BLOCK} if name in COARSE else {}
            words = ", ".join(f"{key}={value}" for key, value in given.items()) or "default"
            made.append((f"{name} ({words})", lambda name=name, given={**size, **given}: registry[name](**given)))
    return made


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="one setting of each pattern, 2048 tokens, 2 heads")
    options = parser.parse_args()
    tokens, heads = (2048, 2) if options.quick else (options.tokens, options.heads)
    print(f"{'':52s}" + "".join(f"{title:>10s}" for title in TITLES))
    table = []
    for kind in KINDS:
        prefill = planted(kind, tokens, heads, options.seed)
        rows, mass = sample_rows(prefill), block_mass(prefill, BLOCK, BLOCK)
        dense = torch.nn.functional.scaled_dot_product_attention(
            prefill.q, prefill.k, prefill.v, is_causal=True, scale=prefill.scale
        )
        print(kind)
        for name, make in settings(options.quick):
            row = measured(make(), prefill, rows, dense, mass)
            print(
                f"  {name:50s}" + "".join(" " * 9 + "-" if x is None else f"{x:10.3f}" for x in row.values()),
                flush=True,
            )
            table.append({"data": kind, "pattern": name, **row})
    record = {"tokens": tokens, "heads": heads, "head_dim": 64, "gain": GAIN, "seed": options.seed, "rows": table}
    print(f"appended to {append('pattern_quality', record)}")


if __name__ == "__main__":
    main()

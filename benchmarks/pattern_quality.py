"""How much attention does each pattern keep, how much of the map does it read for that, and does a sink mislead it?

Queries and keys are noise with planted structure (`tests/support/planted.py`). "recall" is the share of the dense
attention on kept keys, mean and 5th percentile over rows. "sink" is the lowest recall of the rest, on the same layer,
of what the pattern chooses when key 0, or keys 0 to 3, take 30 or 60 % of every row. "cells" is the share of pairs of
row and key below the diagonal that are read, "blocks" that of 64 x 64 blocks with such a pair; "error" that of the
output. Beside each pattern: the recall of the best blocks there are (they take all of the dense attention to find), of
random ones with sink and diagonal, and of an A-shape, all with as many cells. "of oracle" is the first by the second;
single columns may pass 1, since they are finer than blocks. Pooled keys (psa) are not part of the dense attention and
have no recall; compare their error.

    python benchmarks/pattern_quality.py                  # 4096 tokens, 4 heads
    python benchmarks/pattern_quality.py --quick
    python benchmarks/pattern_quality.py --quick --pattern sampled min_p
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from common import append
from tests.support import planted
from tests.support.yardsticks import best_blocks, block_mass, yardstick
from vlmopt.kernels.metrics import causal_cells, density, output_error, recall, recall_summary, sample_rows
from vlmopt.kernels.patterns import Pattern, Prefill, registry
from vlmopt.kernels.sparse_attention import run_plan

BLOCK = 64
TITLES = ("cells", "blocks", "recall", "sink", "p5", "error", "oracle", "of oracle", "random", "a_shape")
GAIN = 8.0  # logits of planted cells above the noise, whose deviation is 1
SINKS = ((0.3, 1), (0.6, 1), (0.3, 4), (0.6, 4))  # share of every row, keys that hold it

# Settings from sparse to dense.
SETTINGS: dict[str, list[dict[str, Any]]] = {
    "a_shape": [{"sink": 64, "local": 256}, {"sink": 64, "local": 1024}],
    "tri_shape": [{"sink": 64, "local": 256}],
    "vertical_slash": [{"vertical": 64, "slash": 128}, {"vertical": 250, "slash": 512}, {}],
    "grid": [{"diagonals": False}, {}],
    "q_boundary": [{}],
    "boundary_2d": [{}],
    "sampled": [{"recall": 0.8}, {}, {"recall": 0.95}],
    "min_p": [{"tau": 0.95}, {"tau": 0.87}, {"tau": 0.5}],
    "minference_blocks": [{"blocks": 4}, {"blocks": 8}, {"blocks": 16}],
    "flex_prefill": [{"coverage": 0.5, "min_budget": 128}, {"coverage": 0.8, "min_budget": 128}, {"min_budget": 128}],
    "x_attention": [{"threshold": 0.5}, {"threshold": 0.7}, {"threshold": 0.9}],
    "proxy_attn": [{"coverage": 0.5, "min_budget": 256}, {"coverage": 0.8, "min_budget": 256}, {"min_budget": 256}],
    "pbs_attn": [{"threshold": 0.5}, {"threshold": 0.7}, {"threshold": 0.9}],
    "psa": [{"energy": (0.3, 0.4, 0.5, 0.5)}, {}],
}
COARSE = {"flex_prefill", "x_attention", "proxy_attn", "pbs_attn"}  # 128 by default


def under_sinks(prefill: Prefill) -> Prefill:
    """Return the layer with every kind of sink, as one batch."""
    q, k = (torch.cat(x) for x in zip(*((p.q, p.k) for p in (planted.sinks(prefill, *s) for s in SINKS)), strict=True))
    return as_batch(prefill, q, k)


def as_batch(prefill: Prefill, q: Tensor, k: Tensor) -> Prefill:
    modality = prefill.modality.expand(len(q), -1)
    return replace(prefill, q=q, k=k, v=prefill.v.expand_as(k), modality=modality)


def measured(
    pattern: Pattern, prefill: Prefill, sunk: Prefill, rows: Tensor, dense: Tensor, mass: Tensor
) -> dict[str, float | None]:
    """Return means over heads of one pattern on one layer, and its yardsticks; no recall where keys are pooled."""
    launches = pattern.build(prefill)
    shares = density(prefill, launches, BLOCK, BLOCK)
    cells = shares.cells * causal_cells(prefill, BLOCK, BLOCK).sum((2, 3))  # [1, H]
    plans = {kind: yardstick(kind, prefill, cells, BLOCK, BLOCK) for kind in ("random", "a_shape")}
    plans["oracle"] = best_blocks(prefill, mass, torch.zeros_like(mass, dtype=torch.bool), cells, BLOCK, BLOCK)
    out = run_plan(prefill, launches)
    row = {
        "cells": shares.cells.mean(),
        "blocks": shares.blocks.mean(),
        "error": output_error(out, dense).mean(),
        **{kind: recall(prefill, plan, rows).nanmean() for kind, plan in plans.items()},
    }
    if all(launch.k is None for launch in launches):
        found = recall_summary(recall(prefill, launches, rows))
        plain = as_batch(prefill, prefill.q.expand_as(sunk.q), prefill.k.expand_as(sunk.k))
        rest = recall(plain, pattern.build(sunk), rows.expand(len(sunk.q), -1)).mean((1, 2))  # [sinks]
        row |= {"recall": found["mean"].mean(), "sink": rest.amin(), "p5": found["p5"].mean()}
        row["of oracle"] = row["recall"] / row["oracle"]
    return {title: float(row[title]) if title in row else None for title in TITLES}


def settings(quick: bool, only: list[str]) -> list[tuple[str, Callable[[], Pattern]]]:
    """Return names with settings, and how to make each pattern."""
    made = []
    for name, options in ((name, SETTINGS[name]) for name in only):
        for given in options[len(options) // 2 :][:1] if quick else options:
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
    parser.add_argument("--quick", action="store_true", help="the middle setting of each pattern, 2 heads")
    parser.add_argument("--pattern", nargs="+", choices=SETTINGS, default=list(SETTINGS), help="default: all")
    options = parser.parse_args()
    tokens, heads = options.tokens, 2 if options.quick else options.heads
    print(f"{'':52s}" + "".join(f"{title:>10s}" for title in TITLES))
    table = []
    for kind in planted.STRUCTURES:
        prefill = planted.structured(kind, heads, tokens, seed=options.seed, gain=GAIN)
        sunk = under_sinks(prefill)
        rows, mass = sample_rows(prefill), block_mass(prefill, BLOCK, BLOCK)
        dense = torch.nn.functional.scaled_dot_product_attention(
            prefill.q, prefill.k, prefill.v, is_causal=True, scale=prefill.scale
        )
        print(kind)
        for name, make in settings(options.quick, options.pattern):
            row = measured(make(), prefill, sunk, rows, dense, mass)
            print(
                f"  {name:50s}" + "".join(" " * 9 + "-" if x is None else f"{x:10.3f}" for x in row.values()),
                flush=True,
            )
            table.append({"data": kind, "pattern": name, **row})
    record = {"tokens": tokens, "heads": heads, "head_dim": 64, "gain": GAIN, "seed": options.seed, "rows": table}
    print(f"appended to {append('pattern_quality', record)}")


if __name__ == "__main__":
    main()

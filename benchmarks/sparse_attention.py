"""How much faster is attention over some blocks than over all of them, and what does choosing the blocks cost?

Random blocks of 128 per head, with the first and the diagonal one, against torch's dense causal attention, in turns.
The limit of the speed-up is 1 / density (kept blocks over causal blocks). Other processes on the machine disturb
wall-clock ratios; those of the best rounds and, with one thread, of processor time are disturbed least. "noise" is
p80 / p20 of the dense rounds. Then what estimators cost on random inputs, as a share of dense attention.

    python benchmarks/sparse_attention.py            # tens of minutes
    python benchmarks/sparse_attention.py --quick
    python benchmarks/sparse_attention.py --backend flex --dtype bfloat16
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from common import append, interleaved
from vlmopt.kernels.patterns import GridSparse, MinP, Prefill, Sampled, VerticalSlash, View, XAttention
from vlmopt.kernels.patterns.grid_search import search
from vlmopt.kernels.patterns.probe import probe_lines, probe_rows
from vlmopt.kernels.patterns.tables import blocks_to_index
from vlmopt.kernels.sparse_attention import Launch, SparseIndex, sparse_attention
from vlmopt.measure import Spread

BLOCK = 128
DENSITIES = (0.06, 0.11, 0.26, 0.5)


@dataclass
class Clocked:
    """A call with its processor time kept beside the wall-clock time that it returns."""

    call: Callable[[], Any]
    cpu: list[float] = field(default_factory=list)  # ms, warm-up among them

    def __call__(self) -> float:
        synchronize()
        cpu, wall = time.process_time(), time.perf_counter()
        self.call()
        synchronize()
        self.cpu.append((time.process_time() - cpu) * 1e3)
        return (time.perf_counter() - wall) * 1e3


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def layer(length: int, d: int, options: argparse.Namespace) -> Prefill:
    """Return random q, k, v of one layer."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(1, options.heads, length, d, generator=generator).to(options.device, getattr(torch, options.dtype))
        for _ in range(3)
    )
    return Prefill(q, k, v, d**-0.5, heads=torch.arange(options.heads, device=q.device))


def least_density(length: int) -> float:
    """Return share of causal blocks that are the first or the diagonal one."""
    tiles = -(-length // BLOCK)
    return (2 * tiles - 1) / (tiles * (tiles + 1) / 2)


def random_blocks(prefill: Prefill, density: float) -> tuple[SparseIndex, float]:
    """Return an index of about that density (of causal blocks), different per head, and its exact density."""
    tiles = -(-prefill.rows // BLOCK)
    causal = torch.ones(tiles, tiles, dtype=torch.bool).tril()
    always = torch.eye(tiles, dtype=torch.bool)
    always[:, 0] = True
    free = causal & ~always
    share = (density * causal.sum() - always.sum()) / free.sum()
    drawn = torch.rand(1, len(prefill.heads), tiles, tiles, generator=torch.Generator().manual_seed(1)) < share
    keep = (always | (free & drawn)).to(prefill.device)
    return blocks_to_index(keep, BLOCK, BLOCK, prefill), float(keep.sum() / causal.sum() / len(prefill.heads))


def speed(length: int, d: int, threads: int, options: argparse.Namespace) -> dict[str, Any]:
    """Measure dense attention and random blocks of all densities, in turns."""
    torch.set_num_threads(threads)
    prefill = layer(length, d, options)
    q, k, v = qkv(prefill)
    calls = {"dense": Clocked(lambda: scaled_dot_product_attention(q, k, v, is_causal=True))}
    exact: dict[str, float] = {}
    for density in options.densities:
        if density < least_density(length):
            continue  # nothing but the first and the diagonal blocks would be left
        index, exact[str(density)] = random_blocks(prefill, density)
        calls[str(density)] = Clocked(lambda i=index: sparse_attention(prefill, Launch(i), backend=options.backend))
    times = interleaved(calls, options.repeats)
    dense = Spread.of(times["dense"])
    noise = dense.p80 / dense.p20
    best_dense = min(times["dense"])
    print(f"\n{length} tokens, D = {d}, {threads} thread(s): dense {best_dense:.0f} ms at best, noise {noise:.2f}")
    rows = []
    for name, density in exact.items():
        spread, best = Spread.of(times[name]), best_dense / min(times[name])
        row = {
            "density": density, "limit": 1 / density, **spread.to_dict(), "speedup_of_best": best,
            "speedup_of_median": dense.median / spread.median,
            "speedup_of_cpu": min(calls["dense"].cpu) / min(calls[name].cpu),
        }  # fmt: skip
        rows.append(row)
        cpu = f", processor time {row['speedup_of_cpu']:5.2f}x" if threads == 1 else ""
        print(
            f"  density {density:.3f}: {best:5.2f}x of {row['limit']:5.2f}x at best, "
            f"median {row['speedup_of_median']:5.2f}x{cpu}"
        )
    shape = {"tokens": length, "d": d, "threads": threads, "heads": options.heads, "dtype": options.dtype}
    return {**shape, "dense": {**dense.to_dict(), "best": best_dense}, "noise": noise, "rows": rows}


def qkv(prefill: Prefill) -> tuple[Tensor, Tensor, Tensor]:
    return prefill.q, prefill.k, prefill.v


def estimators(length: int, options: argparse.Namespace) -> dict[str, Any]:
    """Measure what patterns spend before attention starts: probing, scoring and writing the index."""
    torch.set_num_threads(1)
    prefill = layer(length, 64, options)
    q, k, v = qkv(prefill)
    view = View(prefill)
    patterns = {
        "vertical_slash": VerticalSlash(vertical=length // 16, slash=length // 16),
        "grid": GridSparse(),
        "min_p": MinP(),
        "sampled": Sampled(),
        "x_attention, stride 16": XAttention(stride=16),
        "x_attention, stride 8": XAttention(stride=8),
    }
    calls = {
        "dense": Clocked(lambda: scaled_dot_product_attention(q, k, v, is_causal=True)),
        "probe of 64 rows": Clocked(lambda: probe_rows(prefill, 64)),
        "grid: probe and search": Clocked(lambda: search(view, *probe_lines(view, 64), rows=64)),
        **{name: Clocked(lambda p=pattern: p.build(fresh(prefill))) for name, pattern in patterns.items()},
    }
    times = interleaved(calls, options.repeats)
    print(f"\nbefore attention starts, {length} tokens, D = 64, one thread, random inputs, % of dense attention:")
    rows = []
    for name in list(calls)[1:]:
        share = min(calls[name].cpu) / min(calls["dense"].cpu)
        rows.append({"estimator": name, "share_of_dense": share, **Spread.of(times[name]).to_dict()})
        print(f"  {name:24s} {100 * share:6.2f} %")
    return {"tokens": length, "d": 64, "rows": rows}


def fresh(prefill: Prefill) -> Prefill:
    """Return the prefill without what another pattern has left in the cache."""
    return replace(prefill)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2048 tokens, one density, one thread")
    parser.add_argument("--lengths", type=int, nargs="+", default=[4096, 8192, 16384])
    parser.add_argument("--densities", type=float, nargs="+", default=DENSITIES)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--dims", type=int, nargs="+", default=[64, 128], help="128 at 8192 tokens alone")
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-estimators", action="store_true", help="attention alone")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    if options.quick:
        options.lengths, options.densities, options.threads, options.repeats = [2048], [0.26], [1], 3
    shapes = [(n, d) for n in options.lengths for d in options.dims if d == 64 or n == 8192]
    speeds = [speed(n, d, t, options) for n, d in shapes for t in options.threads]
    record = {"backend": options.backend, "block": BLOCK, "repeats": options.repeats, "speed": speeds}
    costs = None if options.no_estimators else estimators(min(options.lengths[-1], 8192), options)
    print(f"appended to {append('sparse_attention', {**record, 'estimators': costs})}")


if __name__ == "__main__":
    main()

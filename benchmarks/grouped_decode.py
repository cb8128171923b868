"""One query row over shared keys on a CPU: the kernel's `enable_gqa` against the heads of a group as rows of one head.

Attention alone, of one layer and one generated token, in turns; above 1 grouped rows are faster. `Policy(gqa="auto")`
takes them where this table says so.

    python benchmarks/grouped_decode.py             # three minutes on one core
    python benchmarks/tables.py --write             # into docs/kv-cache.md
"""

from __future__ import annotations

import argparse
import statistics
import time
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from common import append, interleaved

SHAPES = {  # query heads, key heads, width
    "28, 4, 128": (28, 4, 128),
    "16, 2, 128": (16, 2, 128),
    "32, 8, 128": (32, 8, 128),
    "32, 8, 64": (32, 8, 64),
    "16, 8, 256": (16, 8, 256),
    "9, 3, 64": (9, 3, 64),
}
KEYS = (64, 256, 1024, 4096, 8192, 16384, 32768)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def kernel(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return scaled_dot_product_attention(query, key, value, enable_gqa=True)


def grouped(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    batch, heads, _, width = query.shape
    rows = query.reshape(batch, key.shape[1], -1, width)
    return scaled_dot_product_attention(rows, key, value).reshape(batch, heads, 1, width)


def timed(run: Any, sets: list[tuple[Tensor, Tensor, Tensor]]) -> float:
    """Return milliseconds per call over several sets of keys, which together do not fit into the processor's cache."""
    start = time.perf_counter()
    for one in sets:
        run(*one)
    return (time.perf_counter() - start) * 1e3 / len(sets)


@torch.inference_mode()
def cell(shape: tuple[int, int, int], batch: int, keys: int, dtype: torch.dtype, repeats: int) -> dict[str, Any]:
    heads, key_heads, width = shape
    size = 2 * batch * key_heads * keys * width * dtype.itemsize
    sets = [
        (
            torch.randn(batch, heads, 1, width, dtype=dtype),
            torch.randn(batch, key_heads, keys, width, dtype=dtype),
            torch.randn(batch, key_heads, keys, width, dtype=dtype),
        )
        for _ in range(max(2, min(24, 2**27 // size)))
    ]
    times = interleaved({"kernel": partial(timed, kernel, sets), "grouped": partial(timed, grouped, sets)}, repeats, 1)
    ratios = sorted(a / b for a, b in zip(times["kernel"], times["grouped"], strict=True))
    return {
        "ms": {name: statistics.median(values) for name, values in times.items()},
        "ratio": statistics.median(ratios),
        "low": ratios[len(ratios) // 5],
        "high": ratios[-1 - len(ratios) // 5],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=tuple(SHAPES))
    parser.add_argument("--batch", type=int, nargs="+", default=(1,))
    parser.add_argument("--keys", type=int, nargs="+", default=KEYS)
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=tuple(DTYPES))
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    for dtype in options.dtype:
        for shape in options.shape:
            for batch in options.batch:
                for keys in options.keys:
                    one = cell(SHAPES[shape], batch, keys, DTYPES[dtype], options.repeats)
                    record = {"shape": shape, "batch": batch, "keys": keys, "dtype": dtype, **one}
                    append("grouped_decode", record)
                    print(
                        f"{dtype} {shape} x{batch} {keys:>6}: {one['ratio']:.2f} ({one['low']:.2f}-{one['high']:.2f})"
                    )


if __name__ == "__main__":
    main()

"""What the two ideas of `decode_ideas.py` cost and save in time: one layer's attention, and one MLP, of a token.

python benchmarks/decode_ideas_speed.py
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, scaled_dot_product_attention, silu

from common import append, interleaved
from decode_ideas import GROUP, NEURONS


@torch.inference_mode()
def speed(options: argparse.Namespace) -> None:
    """Time one layer with the heads of a 7B model over packed keys, and one MLP of a 3B model with few neurons."""
    heads, key_heads, width = 28, 4, 128
    for keys in (4096, 16384):
        query = torch.randn(1, key_heads, heads // key_heads, width)
        key, value = torch.randn(2, 1, key_heads, keys, width)
        low = torch.randint(0, 256, (2, 1, key_heads, keys, width // 2), dtype=torch.uint8)
        scale = torch.rand(2, 1, key_heads, keys // GROUP, 1, width)
        runs = {
            "as it is": lambda q=query, k=key, v=value: scaled_dot_product_attention(q, k, v),
            "with the idea": lambda q=query, p=low, s=scale: scaled_dot_product_attention(
                q, unpack(p[0], s[0]), unpack(p[1], s[1])
            ),
        }
        record(f"attention over {keys} keys of 4 bits, 28 heads", runs, options.repeats)
    hidden, inner = 2048, 11008
    row, gate, up, down = (
        torch.randn(*shape) for shape in ((1, hidden), (inner, hidden), (inner, hidden), (hidden, inner))
    )
    for share in NEURONS:
        index = torch.randperm(inner)[: int(share * inner)].sort().values
        few = gate[index], up[index], down[:, index].contiguous()
        runs = {
            "as it is": partial(mlp, row, gate, up, down),
            "with the idea": partial(mlp, row, *few),
            "once, beforehand": lambda i=index: (gate[i], up[i], down[:, i].contiguous()),
        }
        record(f"an MLP of {100 * share:.0f} % of its neurons", runs, options.repeats)


def unpack(low: Tensor, scale: Tensor) -> Tensor:
    whole = torch.stack([low & 15, low >> 4], -1).flatten(-2).float()
    return (whole.unflatten(2, (-1, GROUP)) * scale).flatten(2, 3)


def mlp(row: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    return linear(silu(linear(row, gate)) * linear(row, up), down)


def record(what: str, runs: dict[str, Callable[[], Any]], repeats: int) -> None:
    def timed(run: Callable[[], Any]) -> float:
        start = time.perf_counter()
        run()
        return (time.perf_counter() - start) * 1e3

    times = interleaved({name: partial(timed, run) for name, run in runs.items()}, repeats, 2)
    ms = {name: statistics.median(values) for name, values in times.items()}
    append("decode_ideas", {"of": what, "ms": ms})
    print(what, {name: round(value, 2) for name, value in ms.items()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    speed(parser.parse_args())


if __name__ == "__main__":
    main()

"""What does sparse reading cost and give? Captions of which most layers read few keys; attention of a token, timed.

Quality: captions over prompts of a few hundred keys, of which layers that reuse a choice read a share; CHAIR's recall
against the same images with all keys read (paired, 95 %). `--speed`: one layer's attention of one generated token with
the heads of a 7B model, in turns: the model's kernel, grouped rows, a layer that reads all and chooses, and one that
reads what was chosen.

    python benchmarks/sparse_reading.py --checkpoint tiny-llava
    python benchmarks/sparse_reading.py --speed
    python benchmarks/tables.py --write      # into docs/kv-cache.md
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from tqdm import tqdm

import vlmopt
from common import append, interleaved
from hallucination_task import task
from kv_cache import BLOCKS, SEED, captions
from vlmopt.metrics import chair, phrases
from vlmopt.policy import Policy
from vlmopt.reading import SparseReading
from vlmopt.runtime.components.sparse_reading import read_all, read_some
from vlmopt.runtime.points import AttentionCall
from vlmopt.synthetic.hallucination import classes

RATIOS = (0.5, 0.25, 0.125, 0.0625)
HEADS, KEY_HEADS, WIDTH = 28, 4, 128
KEYS = (4096, 8192, 16384, 32768)


def quality(options: argparse.Namespace) -> None:
    model, processor = vlmopt.load_checkpoint(options.checkpoint)
    lexicon = phrases(classes(), "classes of the images")
    for block in options.block:
        job = task(options.images, options.images, model.config.model_type, SEED + block * BLOCKS)
        for ratio in tqdm((1.0, *RATIOS), desc=f"{options.checkpoint}, block {block}"):
            read = SparseReading(keep_ratio=ratio, least=1, min_keys=1, full="0:2,50%")
            with vlmopt.optimized(model, Policy(read=read)):
                said, _ = captions(model, processor, job.worlds)
            marks = chair(said, [world.classes for world in job.worlds], lexicon)
            counts = {name: getattr(marks, name).tolist() for name in ("found", "names", "there")}
            facts = {"checkpoint": options.checkpoint, "block": block, "images": options.images, "keep_ratio": ratio}
            append("sparse_reading", {**facts, "captions": said, **counts})


@torch.inference_mode()
def speed(options: argparse.Namespace) -> None:
    method = SparseReading()
    for keys in KEYS:
        count = method.count(keys)
        query, key, value = (torch.randn(1, heads, n, WIDTH) for heads, n in ((HEADS, 1), *[(KEY_HEADS, keys)] * 2))
        at = AttentionCall(0, nn.Identity(), query, key, value, None, {})
        rows = query.view(1, KEY_HEADS, -1, WIDTH)
        index = torch.stack([torch.randperm(keys)[:count] for _ in range(KEY_HEADS)])[None]
        runs = {
            "kernel": partial(scaled_dot_product_attention, query, key, value, enable_gqa=True),
            "grouped": partial(scaled_dot_product_attention, rows, key, value),
            "all, choosing": partial(read_all, rows, at, count, keys - 1),
            "chosen": partial(read_some, rows, at, index),
        }
        times = interleaved({name: partial(timed, run) for name, run in runs.items()}, options.repeats, 2)
        ms = {name: statistics.median(values) for name, values in times.items()}
        append("sparse_reading", {"keys": keys, "read": count, "ms": ms})
        print(keys, count, {name: round(value, 2) for name, value in ms.items()})


def timed(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return (time.perf_counter() - start) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="tiny-qwen")
    parser.add_argument("--images", type=int, default=24, help="of a block")
    parser.add_argument("--block", type=int, nargs="+", default=[0], help="of seeds, each with its own images")
    parser.add_argument("--speed", action="store_true", help="time one layer's attention instead")
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    if options.speed:
        speed(options)
    else:
        quality(options)


if __name__ == "__main__":
    main()

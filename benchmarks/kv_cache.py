r"""What do evictions of keys cost, and what do they give? Captions, questions after the image, bytes, decoding speed.

Captions are written over what is left of the prompt's keys; CHAIR's recall and precision say whether the objects are
still there. Questions come *after* the eviction: the image alone is read and evicted, then each question continues a
copy of that cache, so that nothing is known of the question and its first token, unlike a caption's, depends on what
was kept. Differences are paired with the full cache on the same images (bootstrap over images, 95 %); `random_kv`
stands beside each budget. `--speed` times one decoding step of random decoders over caches of 1K, 4K and 16K keys and
over a tenth of each, beside the limit (W + c) / (W + 0.1 c) that the bytes of weights W and cache c allow.

    python benchmarks/kv_cache.py --checkpoint tiny-qwen
    python benchmarks/kv_cache.py --checkpoint tiny-llava
    python benchmarks/kv_cache.py --speed
    python benchmarks/tables.py --write      # into docs/kv-cache.md
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from tqdm import tqdm
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

import vlmopt
from common import append, interleaved
from hallucination_task import task
from vlmopt import kv
from vlmopt.kv import Eviction
from vlmopt.metrics import chair, is_yes, phrases
from vlmopt.policy import Policy
from vlmopt.prompt import chat
from vlmopt.synthetic.hallucination import DESCRIBE, classes

Reader = Callable[[Any, dict[str, Any]], DynamicCache]  # of a model and what it is handed
BUDGETS = (0.5, 0.2, 0.1)
SEED = 624_000_000  # of images that nothing else uses
BLOCKS = 100_000  # seeds of one block
BATCH = 16
ASKED = 2  # questions about every image: one to be answered yes, one no
OWN: dict[str, Any] = {"recent": 1, "first": 1}
MAKERS: dict[str, Any] = {
    "random_kv": lambda ratio: kv.RandomKV(keep_ratio=ratio, **OWN),
    "key_diff": lambda ratio: kv.KeyDiff(keep_ratio=ratio, **OWN),
    "snap_kv": lambda ratio: kv.SnapKV(keep_ratio=ratio, **OWN),
    "snap_kv, mix": lambda ratio: kv.SnapKV(keep_ratio=ratio, mix=True, **OWN),
    "vl_cache": lambda ratio: kv.VLCache(keep_ratio=ratio, **OWN),
}
KEYS = (1024, 4096, 16384)
SHAPES = {"16 of 16 key heads": (16, 16), "16 heads, 2 key heads": (16, 2)}  # query and key-value heads of 64


@torch.inference_mode()
def captions(model: Any, processor: Any, worlds: Sequence[Any]) -> tuple[list[str], list[int]]:
    """Return what the model writes of every image, and the bytes of the prompt's cache before and after."""
    text = chat(processor, "image", 1, DESCRIBE)
    said: list[str] = []
    sizes = [0, 0]
    for first in range(0, len(worlds), BATCH):
        images = [[world.image] for world in worlds[first : first + BATCH]]
        inputs = processor(text=[text] * len(images), images=images, return_tensors="pt", padding=True)
        out = model.generate(**inputs, max_new_tokens=64, do_sample=False)
        said += processor.tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        report = vlmopt.report(model)
        sizes[0] += report.kv_bytes_prompt
        sizes[1] += report.kv_cache_bytes
    return [answer.strip() for answer in said], sizes


def read(model: Any, prefix: dict[str, Any]) -> DynamicCache:
    """Return the cache of a prefix, from which the model's policy has evicted."""
    cache = DynamicCache(config=model.config.get_text_config())
    model.generate(**prefix, past_key_values=cache, max_new_tokens=1, do_sample=False)
    return cache


@torch.inference_mode()
def replies(model: Any, processor: Any, worlds: Sequence[Any], polls: Any, read: Reader = read) -> list[bool]:
    """Return whether each question is answered rightly behind the cache of its image alone, which `read` makes."""
    right = []
    for number, world in enumerate(worlds):
        cache = None
        for poll in [poll for poll in polls if poll.image == number][:ASKED]:
            inputs = processor(
                text=[chat(processor, "image", 1, poll.text)], images=[[world.image]], return_tensors="pt"
            )
            ids = inputs["input_ids"]
            end = int((ids[0] == model.config.image_token_id).nonzero()[-1]) + 1
            if cache is None:
                prefix = {
                    name: value[:, :end] if value.shape[:2] == ids.shape else value for name, value in inputs.items()
                }
                cache = read(model, prefix)
            turn = {name: value for name, value in inputs.items() if value.shape[:2] == ids.shape}
            out = model.generate(**turn, past_key_values=copy.deepcopy(cache), max_new_tokens=4, do_sample=False)
            said = processor.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
            right.append(is_yes(said, "strict") == (poll.label == "yes"))
    return right


def quality(options: argparse.Namespace) -> None:
    model, processor = vlmopt.load_checkpoint(options.checkpoint)
    lexicon = phrases(classes(), "classes of the images")
    for block in options.block:
        job = task(options.images, options.images, model.config.model_type, SEED + block * BLOCKS)
        named: list[tuple[str, float, Eviction | None]] = [("full cache", 1.0, None)]
        named += [(name, ratio, MAKERS[name](ratio)) for ratio in options.budgets for name in options.methods]
        for name, ratio, method in tqdm(named, desc=f"{options.checkpoint}, block {block}"):
            with vlmopt.optimized(model, Policy(kv=method)):
                said, sizes = captions(model, processor, job.worlds)
                right = replies(model, processor, job.worlds, job.polls["random"])
            marks = chair(said, [world.classes for world in job.worlds], lexicon)
            append(
                "kv_cache",
                {
                    "checkpoint": options.checkpoint, "block": block, "images": options.images, "method": name,
                    "keep_ratio": ratio, "captions": said, "found": marks.found.tolist(),
                    "names": marks.names.tolist(), "there": marks.there.tolist(), "bytes": sizes, "right": right,
                },
            )  # fmt: skip


def speed(options: argparse.Namespace) -> None:
    """Time decoding steps; the decoder's weights are random, its cache is filled and never read for sense."""
    for label, (heads, key_heads) in SHAPES.items():
        config = LlamaConfig(
            hidden_size=1024, intermediate_size=2816, num_hidden_layers=8, num_attention_heads=heads,
            num_key_value_heads=key_heads, vocab_size=1000, max_position_embeddings=32768,
        )  # fmt: skip
        model = LlamaForCausalLM(config).eval()
        weights = sum(p.numel() * p.element_size() for p in model.model.layers.parameters())
        for keys in KEYS:
            caches = {"all": filled(config, keys), "a tenth": filled(config, keys // 10)}
            size = 2 * 8 * key_heads * keys * 64 * 4
            times = interleaved({n: partial(step, model, c) for n, c in caches.items()}, options.repeats, 2)
            both = {name: statistics.median(values) for name, values in times.items()}
            limit = (weights + size) / (weights + 0.1 * size)
            record = {"speed": label, "keys": keys, "ms": both, "ratio": both["all"] / both["a tenth"], "limit": limit}
            append("kv_cache", record)
            print(record)


def filled(config: LlamaConfig, keys: int) -> DynamicCache:
    cache = DynamicCache()
    for layer in range(config.num_hidden_layers):
        shape = (1, config.num_key_value_heads, keys, 64)
        cache.update(torch.randn(shape), torch.randn(shape), layer)
    return cache


@torch.inference_mode()
def step(model: Any, cache: DynamicCache) -> float:
    """Return the milliseconds of one decoding step, which leaves the cache as it was."""
    before = cache.get_seq_length()
    start = time.perf_counter()
    model(input_ids=torch.tensor([[7]]), past_key_values=cache)
    took = (time.perf_counter() - start) * 1e3
    cache.crop(before - cache.get_seq_length())
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="tiny-qwen")
    parser.add_argument("--images", type=int, default=64, help="of a block")
    parser.add_argument("--block", type=int, nargs="+", default=[0], help="of seeds, each with its own images")
    parser.add_argument("--budgets", type=float, nargs="+", default=BUDGETS)
    parser.add_argument("--methods", nargs="+", choices=MAKERS, default=list(MAKERS), help="default: all")
    parser.add_argument("--speed", action="store_true", help="time decoding steps instead")
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    if options.speed:
        speed(options)
    else:
        quality(options)


if __name__ == "__main__":
    main()

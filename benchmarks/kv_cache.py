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
    python benchmarks/kv_cache.py --tables
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

import vlmopt
from common import RESULTS, append, interleaved
from hallucination_task import task
from vlmopt import kv
from vlmopt.kv import Eviction
from vlmopt.metrics import chair, is_yes, paired_difference, phrases
from vlmopt.policy import Policy
from vlmopt.prompt import chat
from vlmopt.synthetic.hallucination import DESCRIBE, classes

Fraction = tuple[np.ndarray, np.ndarray]
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


def tables() -> None:
    """Print Markdown of the newest measurement of every cell; blocks of seeds are pooled."""
    names = ("checkpoint", "method", "keep_ratio", "block", "speed", "keys")
    lines = map(json.loads, (RESULTS / "kv_cache.jsonl").read_text().splitlines())
    cells = list({tuple(cell.get(name) for name in names): cell for cell in lines}.values())
    for checkpoint in dict.fromkeys(cell["checkpoint"] for cell in cells if "checkpoint" in cell):
        own = [cell for cell in cells if cell.get("checkpoint") == checkpoint]
        full = {cell["block"]: cell for cell in own if cell["method"] == "full cache"}
        print(f"\n**{checkpoint}**, {sum(cell['images'] for cell in full.values())} images\n")
        print("| method | keys kept | bytes | recall, − full | precision, − full | same caption | questions, − full |")
        print("|---|---|---|---|---|---|---|")
        for key in dict.fromkeys((cell["method"], cell["keep_ratio"]) for cell in own):
            row(
                key,
                [(c, full[c["block"]]) for c in own if (c["method"], c["keep_ratio"]) == key and c["block"] in full],
            )
    print("\n| decoder | keys | all, ms | a tenth, ms | ratio | limit |\n|---|---|---|---|---|---|")
    for cell in (cell for cell in cells if "speed" in cell):
        print(
            f"| {cell['speed']} | {cell['keys']} | {cell['ms']['all']:.1f} | {cell['ms']['a tenth']:.1f} | "
            f"{cell['ratio']:.2f} | {cell['limit']:.2f} |"
        )


def row(key: tuple[str, float], pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> None:
    def joined(field: str, side: int) -> np.ndarray:
        return np.concatenate([np.array(pair[side][field]) for pair in pairs])

    def versus(top: str, bottom: str) -> str:
        mine, full = ((joined(top, side), joined(bottom, side)) for side in (0, 1))
        return written(mine, full)

    right = [per_image(pair[0]) for pair in pairs], [per_image(pair[1]) for pair in pairs]
    mine, full = (tuple(np.concatenate([part[i] for part in side]) for i in (0, 1)) for side in right)
    asked = written(mine, full)
    same = np.mean(
        [a == b for mine_, full_ in pairs for a, b in zip(mine_["captions"], full_["captions"], strict=True)]
    )
    size = sum(pair[0]["bytes"][1] for pair in pairs) / sum(pair[0]["bytes"][0] for pair in pairs)
    name, ratio = key
    print(
        f"| {name} | {100 * ratio:.0f} % | {100 * size:.0f} % | {versus('found', 'there')} | "
        f"{versus('found', 'names')} | {100 * same:.0f} % | {asked} |"
    )


def written(mine: Fraction, full: Fraction) -> str:
    """Write a ratio of sums, and how it differs from the full cache's."""
    gap = paired_difference(full, mine)
    low, high = 100 * gap.low, 100 * gap.high
    return f"{100 * mine[0].sum() / mine[1].sum():.1f} ({100 * gap.value:+.1f}, {low:+.1f}..{high:+.1f})"


def per_image(cell: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Return right answers and questions of every image."""
    right = np.array(cell["right"], dtype=float).reshape(cell["images"], ASKED)
    return right.sum(1), np.full(len(right), float(ASKED))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="tiny-qwen")
    parser.add_argument("--images", type=int, default=64, help="of a block")
    parser.add_argument("--block", type=int, nargs="+", default=[0], help="of seeds, each with its own images")
    parser.add_argument("--budgets", type=float, nargs="+", default=BUDGETS)
    parser.add_argument("--methods", nargs="+", choices=MAKERS, default=list(MAKERS), help="default: all")
    parser.add_argument("--speed", action="store_true", help="time decoding steps instead")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--tables", action="store_true", help="print Markdown of what was measured, and stop")
    options = parser.parse_args()
    if options.tables:
        tables()
    elif options.speed:
        speed(options)
    else:
        quality(options)


if __name__ == "__main__":
    main()

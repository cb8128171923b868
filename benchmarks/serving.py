"""What pruning inside vLLM gains: time to the first token and requests per second, policies in turns in one engine.

Runs in the environment of vlmopt-vllm (`make .venv-vllm/.installed`), on a CPU or a GPU. No cache of any kind, and
everything counts: processor, tower, scheduler, prefill. The oracle is the dense engine on an image of half the
width and height, so of as many cells as a quarter: its tower works less, too, so it is what could be gained at most.

    python benchmarks/serving.py                                    # a 0.2 B random Qwen2.5-VL, 1 and 8 at once
    python benchmarks/serving.py --video ours                       # and --video evs, vLLM's own, in its own engine
    python benchmarks/tables.py --write                             # the tables of docs/serving.md

On a GPU, in an environment with vLLM's own build and vlmopt-vllm, the same with a model of the size that one serves:

    python benchmarks/serving.py --model Qwen/Qwen2.5-VL-7B-Instruct --side 896 --together 1 8 32 --repeats 20
    python benchmarks/serving.py --model Qwen/Qwen2.5-VL-7B-Instruct --together 1 8 32 --repeats 20 --video ours
    python benchmarks/serving.py --model Qwen/Qwen2.5-VL-7B-Instruct --together 1 8 32 --repeats 20 --video evs
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from common import append

SIDE = 196  # 196 cells of 14 pixels in the random model, whose merger joins nothing
POLICIES: dict[str, Any] = {
    "dense": None,
    "uniform 25 %": {"method": "uniform", "keep_ratio": 0.25},
    "div_prune 25 %": {"method": "div_prune", "keep_ratio": 0.25},
    "vision_zip 25 %": {"method": "vision_zip", "keep_ratio": 0.25, "tower_layer": -1},
    "pixel_redundancy": {"method": "pixel_redundancy"},
}
TEXT = "<|vision_start|><|image_pad|><|vision_end|>What is in the image?"
KINDS = {"ours": "evs 25 %", "evs": "vLLM's EVS 25 %"}


def settings(options: argparse.Namespace) -> dict[str, Any]:
    """Engine options; the random model is described here, and its weights are made up by vLLM."""
    common: dict[str, Any] = {
        "enable_prefix_caching": False, "mm_processor_cache_gb": 0, "seed": 0, "max_model_len": 4096,
        "max_num_batched_tokens": 8192, "limit_mm_per_prompt": {"image": 1, "video": int(bool(options.video))},
    }  # fmt: skip
    if options.model != "random":
        return {"model": options.model, **common}
    return {"model": random_model(), "load_format": "dummy", "dtype": "float32", "enforce_eager": True, **common}


def random_model() -> str:
    """Write configuration and processor of a 0.2 B model with tiny-qwen's tokenizer; returns the folder."""
    import tempfile
    from pathlib import Path

    import transformers as hf

    import vlmopt

    folder = tempfile.mkdtemp()
    bundled = Path(vlmopt.__file__).parent / "checkpoints" / "tiny-qwen"
    ids = {"image_token_id": 6, "video_token_id": 7, "vision_start_token_id": 4, "vision_end_token_id": 5}
    text = {
        "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 12, "num_attention_heads": 14,
        "num_key_value_heads": 2, "vocab_size": 652, "max_position_embeddings": 8192, "eos_token_id": 1,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [8, 12, 12]},
    }  # fmt: skip
    tower = {
        "depth": 4, "hidden_size": 256, "intermediate_size": 512, "num_heads": 4, "patch_size": 14,
        "spatial_merge_size": 1, "temporal_patch_size": 2, "out_hidden_size": 896,
        "fullatt_block_indexes": [0, 1, 2, 3],
    }  # fmt: skip
    config = hf.Qwen2_5_VLConfig(
        text_config=text, vision_config=tower, architectures=["Qwen2_5_VLForConditionalGeneration"], **ids
    )
    config.save_pretrained(folder)
    sizes = {"patch_size": 14, "merge_size": 1, "temporal_patch_size": 2}
    size = {"shortest_edge": 784, "longest_edge": 10**7}
    hf.Qwen2_5_VLProcessor(
        hf.Qwen2VLImageProcessor(size=size, **sizes), hf.AutoTokenizer.from_pretrained(bundled),
        hf.Qwen2VLVideoProcessor(size=size, **sizes), chat_template=(bundled / "chat_template.jinja").read_text(),
    ).save_pretrained(folder)  # fmt: skip
    return folder


def image(rng: np.random.Generator, side: int) -> Image.Image:
    """Draw noise with two flat bars, so that half of it is redundant, and no two are alike."""
    pixels = rng.integers(0, 255, (side, side, 3), dtype=np.uint8)
    pixels[: side // 4] = pixels[-(side // 4) :] = rng.integers(0, 255, 3, dtype=np.uint8)
    return Image.fromarray(pixels)


def timed(llm: Any, prompts: list[dict[str, Any]]) -> tuple[float, float, int]:
    """Run prompts together for one token each; (milliseconds, those of all its threads, prompt tokens of the first)."""
    from vllm import SamplingParams

    began, used = time.perf_counter(), time.process_time()
    outputs = llm.generate(prompts, SamplingParams(temperature=0, max_tokens=1), use_tqdm=False)
    wall, work = time.perf_counter() - began, time.process_time() - used
    return 1000 * wall, 1000 * work, len(outputs[0].prompt_token_ids)


def medians(measured: list[tuple[float, float]]) -> tuple[float, float]:
    times, works = zip(*measured, strict=True)
    return statistics.median(times), statistics.median(works)


def images(llm: Any, options: argparse.Namespace) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """Measure every policy and the oracle in turns; (requests at once, a row for each)."""
    rng = np.random.default_rng(0)
    side = int(options.side)
    oracles = {"oracle 25 %": side // 2}
    for together in options.together:
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in (*POLICIES, *oracles)}
        tokens: dict[str, int] = {}
        for turn in range(options.repeats + 1):
            for name, measured in times.items():
                policy, edge = POLICIES.get(name), oracles.get(name, side)
                prompts = [
                    {"prompt": TEXT, "multi_modal_data": {"image": image(rng, edge)},
                     "mm_processor_kwargs": {"vlmopt": policy}} for _ in range(together)
                ]  # fmt: skip
                ms, work, tokens[name] = timed(llm, prompts)
                if turn:
                    measured.append((ms, work))
        (dense, dense_work), rows = medians(times["dense"]), []
        for name, measured in times.items():
            middle, work = medians(measured)
            low, high = np.percentile([ms for ms, _ in measured], [20, 80])
            blocks = -(-tokens[name] // options.block)
            rows.append({
                "policy": name, "prompt_tokens": tokens[name], "kv_blocks": blocks, "ms": middle, "p20": float(low),
                "p80": float(high), "cpu_ms": work, "times_faster": dense / middle,
                "times_less_work": dense_work / work, "requests_per_second": 1000 * together / middle,
            })  # fmt: skip
            print(f"{together:3} at once  {name:18} {tokens[name]:5} tokens {blocks:4} blocks  {middle:8.0f} ms "
                  f"({low:.0f} to {high:.0f})  {dense / middle:5.2f} x ({dense_work / work:.2f})  "
                  f"{1000 * together / middle:6.2f} req/s", flush=True)  # fmt: skip
        yield together, rows


def film(rng: np.random.Generator, side: int, frames: int = 8) -> tuple[np.ndarray, dict[str, Any]]:
    still = rng.integers(0, 255, (side, side, 3), dtype=np.uint8)
    clip = np.stack([still] * frames)
    clip[frames // 2 :, : side // 3, : side // 3] = rng.integers(0, 255, (side // 3, side // 3, 3), dtype=np.uint8)
    return clip, {"fps": 2.0, "duration": frames / 2, "total_num_frames": frames, "frames_indices": list(range(frames)),
                  "video_backend": "opencv", "do_sample_frames": False}  # fmt: skip


def videos(llm: Any, options: argparse.Namespace) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """Measure one engine on clips of eight frames; (requests at once, its one row)."""
    rng, name = np.random.default_rng(0), KINDS[options.video]
    text = TEXT.replace("image_pad", "video_pad")
    for together in options.together:
        measured: list[tuple[float, float]] = []
        tokens = 0
        for turn in range(options.repeats + 1):
            films = [film(rng, options.side // 2) for _ in range(together)]
            ms, work, tokens = timed(llm, [{"prompt": text, "multi_modal_data": {"video": [clip]}} for clip in films])
            measured += [(ms, work)] if turn else []
        middle, work = medians(measured)
        print(f"{together:3} at once  video  {name:18} {tokens:5} tokens  {middle:8.0f} ms ({work:.0f} of all "
              f"threads)  {1000 * together / middle:6.2f} req/s", flush=True)  # fmt: skip
        low, high = np.percentile([ms for ms, _ in measured], [20, 80])
        yield together, [{"policy": name, "prompt_tokens": tokens, "ms": middle, "p20": float(low), "p80": float(high),
                          "cpu_ms": work, "requests_per_second": 1000 * together / middle}]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="random", help="a Qwen-VL model, or random (default)")
    parser.add_argument("--side", type=int, default=SIDE, help=f"of the images, in pixels (default {SIDE})")
    parser.add_argument("--together", type=int, nargs="+", default=[1, 8], help="requests that run at once")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--block", type=int, default=32, help="tokens of a KV block, for the count of blocks")
    parser.add_argument("--video", choices=["ours", "evs"], default="", help="clips: our evs, or vLLM's own, at 25 %%")
    options = parser.parse_args()
    # vLLM's own switches: a small cache on a CPU, the engine in this process.
    os.environ.update(VLLM_CPU_KVCACHE_SPACE="2", VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_LOGGING_LEVEL="ERROR")
    from vllm import LLM, __version__

    if options.video == "evs":
        measured = videos(LLM(**settings(options), video_pruning_rate=0.75), options)
    elif options.video:
        evs = {"mm_processor_kwargs": {"vlmopt": {"method": "evs", "keep_ratio": 0.25}}}
        measured = videos(LLM(**settings(options), **evs), options)
    else:
        measured = images(LLM(**settings(options), mm_processor_kwargs={"vlmopt": None}), options)
    asked = {name: getattr(options, name) for name in ("model", "side", "video", "repeats")}
    for together, rows in measured:
        print(append("serving", {**asked, "vllm": __version__, "together": together, "rows": rows}))


if __name__ == "__main__":
    main()

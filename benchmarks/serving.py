"""What pruning inside vLLM gains: time to the first token, KV blocks and requests per second, policies in turns.

Runs in the environment of vlmopt-vllm (`make .venv-vllm/.installed`), on a CPU or a GPU. No cache of any kind, and
everything counts: processor, tower, scheduler, prefill. The oracle is the dense engine on an image of half the
width and height, so of as many cells as a quarter: its tower works less, too, so it is what could be gained at most.
Clips are shown to two engines in this process, ours and one with vLLM's own pruning of videos (EVS).

    python benchmarks/serving.py                    # a 0.2 B random Qwen2.5-VL, 1 and 8 requests at once
    python benchmarks/serving.py --video            # clips
    python benchmarks/tables.py --write             # the tables of docs/serving.md

On a GPU, in an environment with vLLM's own build and vlmopt-vllm, the same with a model of the size that one serves:

    python benchmarks/serving.py --model Qwen/Qwen2.5-VL-7B-Instruct --side 896 --together 1 8 32 --repeats 20
    python benchmarks/serving.py --model Qwen/Qwen2.5-VL-7B-Instruct --side 1792 --together 1 8 32 --repeats 20 --video
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from common import append

SIDE = 280  # 400 cells of 14 pixels in the random model, whose merger joins nothing
FRAMES = 16  # two to a cell, so the frame that EVS keeps whole is half of a quarter
TEXT = "<|vision_start|><|{}_pad|><|vision_end|>What is in the picture?"
UNIFORM = {"method": "uniform", "keep_ratio": 0.25}
REDUNDANT = {"method": "pixel_redundancy"}
POLICIES: dict[str, Any] = {
    "dense": None,
    "uniform 25 %": UNIFORM,
    "div_prune 25 %": {"method": "div_prune", "keep_ratio": 0.25},
    "vision_zip 25 %": {"method": "vision_zip", "keep_ratio": 0.25, "tower_layer": -1},
    "pixel_redundancy": REDUNDANT,
}
OF_VIDEOS: dict[str, Any] = {
    "dense": None,
    "uniform 25 %": UNIFORM,
    "pixel_redundancy": REDUNDANT,
    "evs 25 %": {"method": "evs", "keep_ratio": 0.25},
}


@dataclass(frozen=True)
class Kind:
    """One kind of request: who answers it, and how one is made, always with other pixels."""

    llm: Any
    make: Callable[[], dict[str, Any]]


def engine(options: argparse.Namespace, model: str, **more: Any) -> Any:
    """Start an engine in this process; weights of the random model are made up by vLLM."""
    from vllm import LLM

    own: dict[str, Any] = {"load_format": "dummy", "dtype": "float32", "enforce_eager": True, "block_size": 32}
    return LLM(
        model, enable_prefix_caching=False, mm_processor_cache_gb=0, seed=0, max_model_len=8192,
        max_num_batched_tokens=8192, limit_mm_per_prompt={"image": 1, "video": int(options.video)},
        gpu_memory_utilization=0.45 if options.video else 0.9, **(own if options.model == "random" else {}), **more,
    )  # fmt: skip


def random_model(**other: int) -> str:
    """Write configuration and processor of a 0.2 B model with tiny-qwen's tokenizer; returns the folder.

    other: sizes of the language model that differ.
    """
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
        **other,
    }  # fmt: skip
    tower = {
        "depth": 4, "hidden_size": 256, "intermediate_size": 512, "num_heads": 4, "patch_size": 14,
        "spatial_merge_size": 1, "temporal_patch_size": 2, "out_hidden_size": text["hidden_size"],
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


def film(rng: np.random.Generator, side: int) -> tuple[np.ndarray, dict[str, Any]]:
    """Make a still clip of noise, in whose second half a ninth of it is another."""
    still = rng.integers(0, 255, (side, side, 3), dtype=np.uint8)
    clip = np.stack([still] * FRAMES)
    clip[FRAMES // 2 :, : side // 3, : side // 3] = rng.integers(0, 255, (side // 3, side // 3, 3), dtype=np.uint8)
    return clip, {"fps": 2.0, "duration": FRAMES / 2, "total_num_frames": FRAMES, "frames_indices": list(range(FRAMES)),
                  "video_backend": "opencv", "do_sample_frames": False}  # fmt: skip


def asked(modality: str, data: Any, **more: Any) -> dict[str, Any]:
    return {"prompt": TEXT.format(modality), "multi_modal_data": {modality: [data]}, **more}


def of_images(options: argparse.Namespace, model: str) -> dict[str, Kind]:
    """Make every policy and the oracle, in one engine."""
    rng, llm = np.random.default_rng(0), engine(options, model, mm_processor_kwargs={"vlmopt": None})

    def kind(side: int, policy: Any) -> Kind:
        return Kind(llm, lambda: asked("image", image(rng, side), mm_processor_kwargs={"vlmopt": policy}))

    kinds = {name: kind(options.side, policy) for name, policy in POLICIES.items()}
    return {**kinds, "oracle 25 %": kind(options.side // 2, None)}


def of_videos(options: argparse.Namespace, model: str) -> dict[str, Kind]:
    """Make policies in one engine, and vLLM's own in another, since it is an option of the whole engine."""
    rng, ours = np.random.default_rng(0), engine(options, model, mm_processor_kwargs={"vlmopt": None})
    theirs = engine(options, model, video_pruning_rate=0.75)

    def kind(policy: Any) -> Kind:
        return Kind(ours, lambda: asked("video", film(rng, options.side // 4), mm_processor_kwargs={"vlmopt": policy}))

    kinds = {name: kind(policy) for name, policy in OF_VIDEOS.items()}
    return {**kinds, "vLLM's EVS 25 %": Kind(theirs, lambda: asked("video", film(rng, options.side // 4)))}


def answered(kind: Kind, together: int, answer: int) -> dict[str, float]:
    """Send requests at once and wait for all answers: times in ms, tokens of a prompt, KV blocks of all requests."""
    from vllm import SamplingParams

    prompts, core = [kind.make() for _ in range(together)], kind.llm.llm_engine
    pool = core.engine_core.engine_core.scheduler.kv_cache_manager.block_pool
    free, params = pool.get_num_free_blocks(), SamplingParams(temperature=0, max_tokens=answer, ignore_eos=True)
    firsts: dict[str, float] = {}
    tokens = blocks = 0
    began, used = time.perf_counter(), time.process_time()
    for i, prompt in enumerate(prompts):
        core.add_request(str(i), prompt, params)
    while core.has_unfinished_requests():
        for out in core.step():
            firsts.setdefault(out.request_id, time.perf_counter() - began)
            tokens = len(out.prompt_token_ids)
        blocks = max(blocks, free - pool.get_num_free_blocks())
    wall, work = time.perf_counter() - began, time.process_time() - used
    return {"first": 1000 * statistics.mean(firsts.values()), "wall": 1000 * wall, "work": 1000 * work,
            "tokens": tokens, "blocks": blocks}  # fmt: skip


def measured(kinds: dict[str, Kind], options: argparse.Namespace) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """Ask all kinds in turns; (requests at once, a row for each)."""
    for together in options.together:
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in kinds}
        for turn in range(options.repeats + 1):
            for name, kind in kinds.items():
                found = answered(kind, together, options.answer)
                runs[name] += [found] if turn else []
        middles = {
            name: {key: statistics.median(run[key] for run in of_kind) for key in of_kind[0]}
            for name, of_kind in runs.items()
        }
        dense, rows = middles["dense"], []
        for name, middle in middles.items():
            low, high = np.percentile([run["first"] for run in runs[name]], [20, 80])
            rows.append({
                "policy": name, "prompt_tokens": int(middle["tokens"]), "kv_blocks": int(middle["blocks"]),
                "first_ms": middle["first"], "p20": float(low), "p80": float(high), "cpu_ms": middle["work"],
                "times_faster": dense["first"] / middle["first"], "times_less_work": dense["work"] / middle["work"],
                "requests_per_second": 1000 * together / middle["wall"],
            })  # fmt: skip
            row = rows[-1]
            print(f"{together:3} at once  {name:18} {row['prompt_tokens']:5} tokens {row['kv_blocks']:4} blocks  first "
                  f"{row['first_ms']:7.0f} ms ({low:.0f} to {high:.0f})  {row['times_faster']:5.2f} x "
                  f"({row['times_less_work']:.2f})  {row['requests_per_second']:6.2f} req/s", flush=True)  # fmt: skip
        yield together, rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="random", help="a Qwen-VL model, or random (default)")
    parser.add_argument("--video", action="store_true", help=f"clips of {FRAMES} frames, a quarter as wide and high")
    parser.add_argument("--side", type=int, default=SIDE, help=f"of the images, in pixels (default {SIDE})")
    parser.add_argument("--together", type=int, nargs="+", default=[1, 8], help="requests that run at once")
    parser.add_argument("--answer", type=int, default=2, help="tokens of every answer (default 2)")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    # vLLM's own switches: a small cache on a CPU, the engines in this process.
    os.environ.update(VLLM_CPU_KVCACHE_SPACE="1", VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_LOGGING_LEVEL="ERROR")
    from vllm import __version__

    model = random_model() if options.model == "random" else options.model
    kinds = (of_videos if options.video else of_images)(options, model)
    facts = {name: getattr(options, name) for name in ("model", "side", "video", "repeats", "answer")}
    for together, rows in measured(kinds, options):
        print(append("serving", {**facts, "vllm": __version__, "together": together, "rows": rows}))


if __name__ == "__main__":
    main()

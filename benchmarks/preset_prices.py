"""What does each preset that drops tokens cost in right answers, against the model as it is?

Three tasks: the short questions of `pruning_quality.py` about still images, on both bundled checkpoints; clicks in
windows of rendered web pages, and the same questions about clips of an image that stands still while a dot crosses it,
on `tiny-qwen`, which was never trained on clips. Random, uniform and, where images may have any size, resize stand
beside the presets at the same budgets. Several blocks of seeds are asked; intervals are paired, over the images of all.
Figures of the small bundled checkpoints say nothing about real models.

    python benchmarks/preset_prices.py                # half an hour on one core
    python benchmarks/preset_prices.py --tables       # Markdown of what was measured
    python benchmarks/preset_prices.py --write        # the prices, into presets.json and the table of the README
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import ImageDraw
from tqdm import tqdm

import preset_tables
import vlmopt
from common import append
from grounding import answers, hits, real
from pages import pages
from pruning_quality import BLOCK_SEEDS, NEW_TOKENS, measure, prepared, questions
from vlmopt.frames import Video
from vlmopt.prompt import video_prompt
from vlmopt.synthetic import World
from vlmopt.training.evaluate import correct

FIRST_SEED = 641_000_000  # of no training image, and of no other benchmark
STILL = ("balanced", "gentle", "aggressive", "question-25")
SCREENS = ("screens", "screens-30")
CLIPS = ("video-25",)
CONTROLS = ("random", "uniform", "resize")
FRAMES = 8
DOT = 6  # pixels of its radius


Rows = dict[str, tuple[list[bool], float]]  # by policy: right or not, and the mean share of visual tokens over layers


def policies(presets: Sequence[str], *controls: str) -> list[str]:
    """Return the model as it is, the presets, and the controls at every budget that a preset has."""
    cuts = [cut for name in presets for cut in vlmopt.Policy.load(name).prune if not cut.before_tower]
    budgets = sorted({cut.keep_ratio for cut in cuts}, reverse=True)
    return ["dense", *presets, *(f"{control}:keep_ratio={budget:g}" for control in controls for budget in budgets)]


def questions_about_images(model: Any, processor: Any, count: int, seed: int) -> tuple[list[str], Rows]:
    any_size = model.config.model_type != "llava"
    presets, controls = ((*STILL, *SCREENS), CONTROLS) if any_size else (STILL, CONTROLS[:2])
    asked = questions(count, seed, model.config.model_type)
    prompts, store, rows = prepared(processor, asked), {}, {}
    for name in policies(presets, *controls):
        tally = measure(model, processor, prompts, name, False, store)
        rows[name] = tally.marks, sum(tally.shares) / len(asked)
    return [question.kind for _, question in asked], rows


def clicks(model: Any, processor: Any, count: int, seed: int) -> tuple[list[str], Rows]:
    targets = real(pages(), count, seed)
    said = {name: answers(model, processor, targets, name) for name in policies(SCREENS, "random")}
    whole = said["dense"][1]["kept"]
    rows = {name: (hits(targets, texts), counts["kept"] / whole) for name, (texts, counts) in said.items()}
    return [target.sort for target in targets], rows


@torch.inference_mode()
def questions_about_clips(model: Any, processor: Any, count: int, seed: int) -> tuple[list[str], Rows]:
    asked = questions(count, seed, model.config.model_type)
    inputs = [video_prompt(processor, model, question.text, clip(world)) for world, question in asked]
    rows: Rows = {}
    for name in policies(CLIPS, *CONTROLS[:2]):
        marks, shares = [], 0.0
        with vlmopt.optimized(model, name):
            for prompt, (_, question) in zip(inputs, asked, strict=True):
                out = model.generate(**prompt, max_new_tokens=NEW_TOKENS, do_sample=False)
                text = processor.tokenizer.decode(out[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
                marks.append(correct(question, text.strip()))
                (sample,) = vlmopt.report(model).samples
                shares += sample["layer_average"] / sample["visual_tokens"]
        rows[name] = marks, shares / len(asked)
    return [question.kind for _, question in asked], rows


def clip(world: World) -> Video:
    """Return frames of an image that stands still, and of a grey dot that crosses it near the lower edge."""
    frames = []
    for number in range(FRAMES):
        frame = world.image.convert("RGB")
        x = DOT + (frame.width - 2 * DOT) * number / (FRAMES - 1)
        y = frame.height - 2 * DOT
        ImageDraw.Draw(frame).ellipse((x - DOT, y - DOT, x + DOT, y + DOT), fill="gray")
        frames.append(torch.from_numpy(np.array(frame)).permute(2, 0, 1).float())
    return Video(torch.stack(frames), 8.0, 2.0, tuple(range(FRAMES)), "pyav")


TASKS = {"questions": questions_about_images, "clicks": clicks, "clips": questions_about_clips}


def run(options: argparse.Namespace) -> None:
    blocks = range(options.first_block, options.first_block + options.blocks)
    asked = [("tiny-llava", "questions"), *(("tiny-qwen", task) for task in TASKS)]
    wanted = [what for what in asked if what[0] in options.checkpoint and what[1] in options.task]
    plan = [(block, *what) for block in blocks for what in wanted]
    for block, checkpoint, task in tqdm(plan):
        seed = FIRST_SEED + block * BLOCK_SEEDS
        kinds, rows = TASKS[task](*vlmopt.load_checkpoint(checkpoint), options.questions, seed)
        said = [
            {"method": name, "marks": "".join("01"[mark] for mark in marks), "layers": share}
            for name, (marks, share) in rows.items()
        ]
        facts = {"checkpoint": checkpoint, "task": task, "block": block, "first_seed": seed, "kinds": kinds}
        append("preset_prices", {**facts, "rows": said})  # at once, so that an interrupted run leaves what it has


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = ("tiny-qwen", "tiny-llava")
    parser.add_argument("--checkpoint", nargs="+", choices=known, default=known, help="default: both")
    parser.add_argument("--task", nargs="+", choices=TASKS, default=tuple(TASKS), help="default: all")
    parser.add_argument("--questions", type=int, default=144, help="in a block, each about an image of its own")
    parser.add_argument("--blocks", type=int, default=3, help="of seeds; intervals are over the images of all")
    parser.add_argument("--first-block", type=int, default=0, help="to add blocks to what was measured")
    parser.add_argument("--tables", action="store_true", help="print Markdown of what was measured, and stop")
    parser.add_argument("--write", action="store_true", help="write the prices where they are shown, and stop")
    options = parser.parse_args()
    if options.tables:
        print(preset_tables.tables())
    elif options.write:
        preset_tables.write()
    else:
        run(options)


if __name__ == "__main__":
    main()

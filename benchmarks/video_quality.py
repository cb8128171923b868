"""What does each video method cost in right answers? Every method at every budget on the same fresh films.

The controls that matter: fewer frames (whole frames left out before the model sees them, the same share of tokens),
uniform and random tokens. A checkpoint has to answer such questions at all: its dense row says whether it does, and
where it does not, no other row means anything. Neither bundled checkpoint was trained on films; figures of one that was
belong into docs/benchmarks.md.

    export PYTHONPATH=.
    python benchmarks/video_quality.py --checkpoint DIRECTORY --frames 8 --films 300
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

import vlmopt
from common import append
from vlmopt.checkpoints import load_checkpoint
from vlmopt.frames import Video
from vlmopt.metrics import wilson
from vlmopt.prompt import placed_for, video_prompt
from vlmopt.pruning import EVS, DivPrune, FastVID, Random, Selector, Uniform, VidCom2
from vlmopt.synthetic import Question
from vlmopt.synthetic.films import KINDS, Film, film

KEEP = (0.5, 0.25, 0.1)
FIRST_SEED = 711_000_000  # training uses 1e9 and up, other benchmarks 6e8
NEW_TOKENS = 8
FEWER = "fewer frames"


def variants(keep: float) -> dict[str, Selector | None]:
    """Return the methods at one budget; None stands for frames that are left out."""
    return {
        "evs": EVS(keep_ratio=keep),
        "dycoke": EVS(keep_ratio=keep, reference="dycoke"),
        "vidcom2": VidCom2(keep_ratio=keep),
        "fastvid": FastVID(keep_ratio=keep, tower_layer=-1),
        "div_prune, whole": DivPrune(keep_ratio=keep),
        "div_prune, each frame": DivPrune(keep_ratio=keep, segment="frame"),
        "uniform, each frame": Uniform(keep_ratio=keep, segment="frame"),
        "random": Random(keep_ratio=keep),
        FEWER: None,
    }


def asked(films: int, frames: int) -> Iterator[tuple[Film, Question]]:
    """Yield one question a film, of every kind in turn, so that films count once."""
    for number in range(films):
        shown = film(FIRST_SEED + number, frames=frames)
        by_kind = {question.kind: question for question in shown.questions}
        order = KINDS[number % len(KINDS) :] + KINDS[: number % len(KINDS)]
        yield shown, next(by_kind[kind] for kind in order if kind in by_kind)


def shown(frames: list[Any], keep: float, step: int) -> Video:
    """Return a video of `keep` of the frames, evenly spread, in whole temporal patches of `step` frames."""
    count = max(round(len(frames) * keep / step), 1) * step
    chosen = np.linspace(0, len(frames) - 1, count).round().astype(int)
    pixels = torch.stack([torch.from_numpy(np.asarray(frames[i])).permute(2, 0, 1).float() for i in chosen])
    return Video(pixels, 2.0, 2.0 * count / len(frames), tuple(chosen.tolist()), "pyav")


@torch.inference_mode()
def answer(model: Any, processor: Any, question: Question, video: Video) -> str:
    inputs = placed_for(model, video_prompt(processor, model, question.text, video))
    out = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
    text: str = processor.tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return text.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="tiny-qwen")
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--films", type=int, default=300)
    options = parser.parse_args()
    model, processor = load_checkpoint(options.checkpoint)
    step = processor.image_processor.temporal_patch_size
    questions = list(asked(options.films, options.frames))
    marks: dict[tuple[str, float], list[bool]] = {}
    rows = [("dense", 1.0, None)] + [(n, keep, m) for keep in KEEP for n, m in variants(keep).items()]
    for name, keep, method in tqdm(rows, desc="rows"):
        with vlmopt.optimized(model, method or "dense"):
            marks[name, keep] = [
                answer(model, processor, question, shown(of.frames, keep if name == FEWER else 1, step))
                == question.answer
                for of, question in questions
            ]
    print(f"{'method':<24}{'keep':>6}{'right':>8}  95 % interval, {len(questions)} films of {options.frames} frames")
    record: list[dict[str, Any]] = []
    for (name, keep), right in marks.items():
        low, high = wilson(sum(right), len(right))
        print(f"{name:<24}{keep:>6.2f}{100 * sum(right) / len(right):>8.1f}  {100 * low:.1f} to {100 * high:.1f}")
        kinds = {
            kind: [mark for mark, (_, q) in zip(right, questions, strict=True) if q.kind == kind] for kind in KINDS
        }
        by_kind = {kind: sum(own) / len(own) for kind, own in kinds.items() if own}
        record.append({"method": name, "keep": keep, "right": sum(right) / len(right), "by_kind": by_kind})
    settings = {"checkpoint": options.checkpoint, "frames": options.frames, "films": len(questions)}
    append("video_quality", {**settings, "rows": record})


if __name__ == "__main__":
    main()

"""Which corrections make a model hallucinate less, and is the text still text? POPE and CHAIR on scenes of habit.

Every picture is a scene in which objects keep company (`vlmopt.synthetic.hallucination`): in training an object's
partner came along with probability 0.85, here with 0.5. A quarter of the pictures is clean, the others are blurred,
low in contrast or made of small shapes. POPE asks six questions per picture and split; captions answer "Describe the
picture." and are marked with exact ground truth. CHAIR alone proves nothing: a caption that stops early or repeats
what is safe scores well, so recall, length, distinct-n, repeated items and captions cut off stand beside it.
Differences are paired with greedy decoding on the same pictures (bootstrap over pictures, 95 %). Figures are those of
the bundled checkpoints.

    python benchmarks/hallucination.py --checkpoint tiny-llava
    python benchmarks/hallucination.py --checkpoint tiny-qwen --methods greedy PAI VHR
    python benchmarks/hallucination.py --tables          # Markdown of what was measured
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

import vlmopt
from common import RESULTS, append
from vlmopt.checkpoints import HERE
from vlmopt.metrics import (
    Chair,
    Interval,
    Lexicon,
    chair,
    is_yes,
    mean_of_splits,
    paired_difference,
    phrases,
    pope_fractions,
    pope_scores,
    ratio_interval,
    text_state,
    wilson,
)
from vlmopt.metrics.chair import COUNTS
from vlmopt.policy import Policy
from vlmopt.prompt import chat
from vlmopt.synthetic.hallucination import DEGRADATIONS, DESCRIBE, HabitWorld, classes, hallucination
from vlmopt.synthetic.polling import SPLITS, Poll, pope
from vlmopt.training.evaluate import SIZES, SIZES_OF

FIRST_SEED = 620_000_000  # training uses 1e9 and up, calibration 4e8, the model cards 5e8, pruning 6.1e8
COMPANY = 0.5  # half of what habit expects is not there
BATCH = 64
ANSWER, CAPTION = 4, 64  # new tokens
GROUPS = {"degraded": DEGRADATIONS[1:], "clean": DEGRADATIONS[:1]}
MODEL_TYPES = {"tiny-llava": "llava", "tiny-qwen": "qwen2_5_vl"}
LETTERS: dict[bool | None, str] = {True: "y", False: "n", None: "?"}
Fraction = tuple[np.ndarray, np.ndarray]


# By the name that papers give them, as published or in our default unless the name says otherwise.
CORRECTIONS: dict[str, dict[str, Any]] = {
    "VAR": {"method": "visual_sink"},
    "PAINT 0.5": {"method": "informed_tokens"},
    "PAINT 0.7": {"method": "informed_tokens", "alpha": 0.7, "beta": 0.4},
    "PAI": {"method": "image_boost"},
    "PAI + guidance": {"method": "image_boost", "gamma": 1.1},
    "VAF": {"method": "attention_fusion", "sign_safe": True},
    "VAF as published": {"method": "attention_fusion", "sign_safe": False},
    "HGAI": {"method": "head_guided"},
    "VHR": {"method": "vision_heads"},
    "VHR 2": {"method": "vision_heads", "strength": 2.0},
    "head gain": {"method": "head_gain"},
    "IAT": {"method": "generated_text"},
    "AdaIAT": {"method": "adaptive_generated_text"},
}
MEASURED = ("visual_sink", "head_gain", "adaptive_generated_text")  # nothing without a profile of the model


def policies(settings: dict[str, dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Policies by name; `settings`, by name of the method, are added. Without its profile a method is left out."""
    ready = {n: c for n, c in CORRECTIONS.items() if c["method"] not in MEASURED or c["method"] in settings}
    return {"greedy": [], **{n: [{**c, **settings.get(c["method"], {})}] for n, c in ready.items()}}


@dataclass(frozen=True)
class Task:
    """Pictures to describe, of which the first `polled` are also asked about by every split of POPE."""

    worlds: list[HabitWorld]
    polls: dict[str, list[Poll]]
    facts: dict[str, Any]

    @property
    def asked(self) -> list[tuple[int, str]]:
        """Every (picture, question) once; questions of one length of answer and pictures of one shape together."""
        once = dict.fromkeys((p.image, p.text) for polls in self.polls.values() for p in polls)
        pairs = [*once, *((image, DESCRIBE) for image in range(len(self.worlds)))]
        return sorted(pairs, key=lambda pair: (pair[1] == DESCRIBE, self.worlds[pair[0]].size))


def task(pictures: int, polled: int, model_type: str) -> Task:
    """`pictures` scenes, degradations and the sizes that suit the model in turn."""
    sizes = SIZES_OF.get(model_type, SIZES)
    worlds = [
        hallucination(
            FIRST_SEED + n,
            sizes[n // len(DEGRADATIONS) % len(sizes)],
            degradation=DEGRADATIONS[n % len(DEGRADATIONS)],
            company=COMPANY,
        )
        for n in tqdm(range(pictures), desc="pictures", leave=False)
    ]
    facts = {"pictures": pictures, "polled": polled, "company": COMPANY, "seed": FIRST_SEED}
    return Task(worlds, {split: pope(worlds[:polled], split) for split in SPLITS}, facts)


@torch.inference_mode()
def answers(model: Any, processor: Any, job: Task, bar: tqdm) -> dict[tuple[int, str], tuple[str, bool]]:
    """(picture, question) -> (answer, whether it came to its end), greedy."""
    found = {}
    for describing, group in groupby(job.asked, key=lambda pair: pair[1] == DESCRIBE):
        pairs = list(group)
        for start in range(0, len(pairs), BATCH):
            part = pairs[start : start + BATCH]
            text = [chat(processor, "image", 1, question) for _, question in part]
            images = [[job.worlds[image].image] for image, _ in part]
            inputs = processor(text=text, images=images, return_tensors="pt", padding=True)
            out = model.generate(**inputs, max_new_tokens=CAPTION if describing else ANSWER, do_sample=False)
            new = out[:, inputs["input_ids"].shape[1] :]
            ended = (new == processor.tokenizer.eos_token_id).any(1).tolist()
            texts = processor.tokenizer.batch_decode(new, skip_special_tokens=True)
            found |= {pair: (answer.strip(), end) for pair, answer, end in zip(part, texts, ended, strict=True)}
            bar.update(len(part))
    return found


def marked(job: Task, found: dict[tuple[int, str], tuple[str, bool]], lexicon: Lexicon) -> dict[str, Any]:
    """What is kept of one method: marks per question and picture, from which the tables are computed."""
    captions, ended = zip(*(found[image, DESCRIBE] for image in range(len(job.worlds))), strict=True)
    marks = chair(captions, [world.classes for world in job.worlds], lexicon)
    groups = {group: [i for i, w in enumerate(job.worlds) if w.degradation in kinds] for group, kinds in GROUPS.items()}
    return {
        "lexicon": marks.source,
        "said": {
            split: "".join(LETTERS[is_yes(found[p.image, p.text][0], "strict")] for p in polls)
            for split, polls in job.polls.items()
        },
        "chair": {name: getattr(marks, name).tolist() for name in COUNTS},
        "text": {
            group: asdict(text_state([captions[i] for i in chosen], stops=",", ended=[ended[i] for i in chosen]))
            for group, chosen in groups.items()
        },
        "examples": captions[: 2 * len(DEGRADATIONS)],
    }


def run(options: argparse.Namespace) -> None:
    model, processor = vlmopt.load_checkpoint(options.checkpoint)
    named = policies(json.loads(options.settings.read_text()) if options.settings else {})
    unknown = set(options.methods or ()) - set(named)
    if unknown:
        raise SystemExit(f"{sorted(unknown)}: unknown, or without a profile in --settings; ready: {', '.join(named)}")
    names = ["greedy", *(name for name in options.methods or named if name != "greedy")]
    job = task(options.pictures, options.polled, model.config.model_type)
    lexicon = phrases(classes(), "classes of the pictures")
    weights = hashlib.sha256((HERE / options.checkpoint / "model.safetensors").read_bytes()).hexdigest()[:16]
    for name in names:
        policy = Policy.load(named[name])
        key = {
            "checkpoint": options.checkpoint,
            "weights": weights,
            "method": name,
            "attention": policy.to_dict()["attention"],
            "task": job.facts,
        }
        if any(all(cell[field] == value for field, value in key.items()) for cell in cells()):
            print(f"{options.checkpoint} {name}: measured before")
            continue
        with tqdm(total=len(job.asked), desc=f"{options.checkpoint} {name}") as bar, vlmopt.optimized(model, policy):
            found = answers(model, processor, job, bar)
        append("hallucination", {**key, **marked(job, found, lexicon)})


def cells() -> Iterator[dict[str, Any]]:
    """What was measured, oldest first."""
    path = RESULTS / "hallucination.jsonl"
    if path.exists():
        yield from map(json.loads, path.read_text().splitlines())


def tables() -> None:
    """Markdown of the newest cell of every checkpoint and method."""
    newest = {(cell["checkpoint"], cell["method"]): cell for cell in cells()}
    for checkpoint in dict.fromkeys(checkpoint for checkpoint, _ in newest):
        mine = [cell for (other, _), cell in newest.items() if other == checkpoint]
        greedy = next(cell for cell in mine if cell["method"] == "greedy")
        mine = [cell for cell in mine if all(cell[key] == greedy[key] for key in ("weights", "task"))]
        facts = greedy["task"]
        job = task(facts["pictures"], facts["polled"], MODEL_TYPES[checkpoint])
        for group in GROUPS:
            print(f"\n**{checkpoint}, {group} pictures: POPE**\n")
            pope_table(job, group, mine, greedy)
            print(f"\n**{checkpoint}, {group} pictures: captions**\n")
            caption_table(job, group, mine, greedy)


def pope_table(job: Task, group: str, mine: Sequence[dict[str, Any]], greedy: dict[str, Any]) -> None:
    print("| method | split | accuracy | − greedy | precision | recall | F1 | yes | asked |\n|" + "---|" * 9)
    for cell in mine:
        figures = {}
        for split in SPLITS:
            labels, said, images = polled(job, group, split, cell)
            figures[split] = pope_scores(labels, said)
            marks = pope_fractions(labels, said, images)
            before = pope_fractions(*polled(job, group, split, greedy))
            row = figures[split]
            print(
                f"| {cell['method']} | {split} | {with_interval(accuracy(marks['accuracy']))} | "
                f"{difference(before['accuracy'], marks['accuracy'], cell is greedy)} | "
                f"{rest(row)} | {len(labels)} |"
            )
        mean = mean_of_splits(figures)
        print(f"| {cell['method']} | mean | {100 * mean.accuracy:.1f} | | {rest(mean)} | |")


def polled(job: Task, group: str, split: str, cell: dict[str, Any]) -> tuple[list[bool], list[bool | None], list[int]]:
    """Labels, answers and pictures of the questions about one group."""
    meant = {letter: answer for answer, letter in LETTERS.items()}
    rows = [
        (poll.label == "yes", meant[letter], poll.image)
        for poll, letter in zip(job.polls[split], cell["said"][split], strict=True)
        if job.worlds[poll.image].degradation in GROUPS[group]
    ]
    labels, said, images = zip(*rows, strict=True)
    return list(labels), list(said), list(images)


def rest(row: Any) -> str:
    return " | ".join(f"{100 * value:.1f}" for value in (row.precision, row.recall, row.f1, row.yes_ratio))


def caption_table(job: Task, group: str, mine: Sequence[dict[str, Any]], greedy: dict[str, Any]) -> None:
    """CHAIR with its companions."""
    shown = ("chair_s", "chair_i")
    print(
        "| method | CHAIR_s | − greedy | CHAIR_i | − greedy | unique CHAIR_i | recall | − greedy | F1 | words "
        "| distinct-1 | distinct-4 | repeated items | cut off |\n|" + "---|" * 14
    )
    chosen = [i for i, world in enumerate(job.worlds) if world.degradation in GROUPS[group]]
    before = fractions(greedy, chosen)
    for cell in mine:
        marks, text = fractions(cell, chosen), cell["text"][group]
        value = {name: ratio_interval(*parts).value for name, parts in marks.items()}
        columns = [cell["method"]]
        for name in shown:
            columns += [
                with_interval(ratio_interval(*marks[name])),
                difference(before[name], marks[name], cell is greedy),
            ]
        columns += [f"{100 * value['unique_i']:.1f}", with_interval(ratio_interval(*marks["recall"]))]
        columns += [difference(before["recall"], marks["recall"], cell is greedy), f"{100 * value['f1']:.1f}"]
        columns += [f"{value['length']:.1f}", f"{text['distinct_1']:.3f}", f"{text['distinct_4']:.3f}"]
        columns += [f"{100 * text[name]:.1f}" for name in ("repeated", "unended")]
        print("| " + " | ".join(columns) + " |")


def fractions(cell: dict[str, Any], chosen: Sequence[int]) -> dict[str, Fraction]:
    counts = {name: np.array(cell["chair"][name])[list(chosen)] for name in COUNTS}
    return Chair(**counts, source=cell["lexicon"]).fractions


def accuracy(marks: Fraction) -> Interval:
    """Bootstrap; where every answer was right or wrong it is blind, and Wilson's interval of the pictures serves."""
    figure, pictures = ratio_interval(*marks), len(marks[0])
    return (
        Interval(figure.value, *wilson(round(figure.value * pictures), pictures)) if figure.value in (0, 1) else figure
    )


def with_interval(figure: Interval) -> str:
    return f"{100 * figure.value:.1f} ({100 * figure.low:.1f} to {100 * figure.high:.1f})"


def difference(before: Fraction, after: Fraction, same: bool) -> str:
    """Points more than greedy with the interval, bold where the interval leaves out zero."""
    if same:
        return ""
    figure = paired_difference(before, after)
    text = f"{100 * figure.value:+.1f} ({100 * figure.low:+.1f} to {100 * figure.high:+.1f})"
    return f"**{text}**" if figure.low > 0 or figure.high < 0 else text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="tiny-llava")
    parser.add_argument("--pictures", type=int, default=512, help="described; a quarter of them is clean")
    parser.add_argument("--polled", type=int, default=128, help="how many of them are asked POPE's questions too")
    parser.add_argument("--methods", nargs="+", help=f"of {', '.join(CORRECTIONS)}; greedy always runs")
    parser.add_argument(
        "--settings", type=Path, help="JSON: method -> settings to add, such as {'visual_sink': {'profile': {...}}}"
    )
    parser.add_argument("--tables", action="store_true", help="print Markdown of what was measured, and stop")
    options = parser.parse_args()
    if options.tables:
        tables()
    else:
        run(options)


if __name__ == "__main__":
    main()

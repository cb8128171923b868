"""Markdown of what `hallucination.py` measured on some blocks of seeds, pooled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from table_parts import paired

from hallucination_task import GROUPS, LETTERS, Task, cells, seed_of, task
from vlmopt.metrics import (
    Chair,
    Interval,
    mean_of_splits,
    paired_difference,
    pope_fractions,
    pope_scores,
    ratio_interval,
    wilson,
)
from vlmopt.metrics.chair import COUNTS
from vlmopt.synthetic.polling import ROUNDS, SPLITS

MODEL_TYPES = {"tiny-llava": "llava", "tiny-qwen": "qwen2_5_vl"}
CONTRASTS = ("vcd", "blank_contrast", "text_contrast", "local_contrast")
CONSTANT = "yes as "  # rows of a constant on yes, fitted to a contrast
Fraction = tuple[np.ndarray, np.ndarray]
Answers = tuple[list[bool], list[bool | None], list[int]]  # label, answer, image of every question


@dataclass(frozen=True)
class Block:
    """What one method, and greedy decoding, did on one block of images."""

    job: Task
    mine: dict[str, Any]
    greedy: dict[str, Any]

    def chosen(self, group: str) -> list[int]:
        return [i for i, world in enumerate(self.job.worlds) if world.degradation in GROUPS[group]]


def methods(measured: Sequence[dict[str, Any]]) -> dict[str, dict[str, list[Block]]]:
    """Return blocks by checkpoint and method: the newest cells that also have greedy decoding of the same weights."""
    newest = {(c["checkpoint"], c["method"], c["task"]["seed"]): c for c in measured}
    found: dict[str, dict[str, list[Block]]] = {}
    for (checkpoint, method, seed), cell in newest.items():
        greedy = newest.get((checkpoint, "greedy", seed))
        if greedy is not None and all(cell[key] == greedy[key] for key in ("weights", "task")):
            facts = cell["task"]
            asked = tuple(facts.get("splits", SPLITS)), facts.get("rounds", ROUNDS)
            job = tasks(facts["pictures"], facts["polled"], MODEL_TYPES[checkpoint], seed, *asked)
            rows = found.setdefault(checkpoint, {})
            rows.setdefault(method, []).append(Block(job, cell, greedy))
            if any(step["method"] in CONTRASTS for step in cell.get("decoding", ())) and "margins" in greedy:
                rows.setdefault(CONSTANT + method, []).append(
                    Block(job, {**greedy, "said": biased(cell, greedy)}, greedy)
                )
    return found


def biased(cell: dict[str, Any], greedy: dict[str, Any]) -> dict[str, str]:
    """Return greedy's answers by split under the constant on yes by which as many are yes as in a cell."""
    yes = LETTERS[True]
    wanted = sum(said.count(yes) for said in cell["said"].values())
    short = sorted(value for values in greedy["margins"].values() for value in values)
    c = (short[max(wanted - 1, 0)] + short[min(wanted, len(short) - 1)]) / 2
    return {
        split: "".join(
            yes if margin < c else LETTERS[False] if said == yes else said
            for said, margin in zip(greedy["said"][split], margins, strict=True)
        )
        for split, margins in greedy["margins"].items()
    }


tasks = cache(task)


def show(blocks: Sequence[int]) -> None:
    """Print tables by checkpoint and group of images."""
    seeds = [seed_of(block) for block in blocks]
    for checkpoint, rows in methods([cell for cell in cells() if cell["task"]["seed"] in seeds]).items():
        for group in GROUPS:
            print(f"\n**{checkpoint}, {group} images: POPE**\n")
            pope_table(rows, group)
            print(f"\n**{checkpoint}, {group} images: captions**\n")
            caption_table(rows, group)


def pope_table(rows: dict[str, list[Block]], group: str) -> None:
    columns = "method | split | accuracy | − greedy | precision | recall | F1 | yes | asked | images"
    print(f"| {columns} |\n|" + "---|" * 10)
    for name, blocks in rows.items():
        figures = {}
        for split in blocks[0].job.polls:
            labels, said, images = polled(blocks, group, split, "mine")
            figures[split] = pope_scores(labels, said)
            marks = pope_fractions(labels, said, images)
            before = pope_fractions(*polled(blocks, group, split, "greedy"))
            print(
                f"| {name} | {split} | {with_interval(accuracy(marks['accuracy']))} | "
                f"{'' if name == 'greedy' else difference(before['accuracy'], marks['accuracy'])} | "
                f"{rest(figures[split])} | {len(labels)} | {len(set(images))} |"
            )
        if len(figures) > 1:
            mean = mean_of_splits(figures)
            print(f"| {name} | mean | {100 * mean.accuracy:.1f} | | {rest(mean)} | | |")


def polled(blocks: Sequence[Block], group: str, split: str, whose: str) -> Answers:
    """Return labels, answers and images, counted through the blocks, of the questions about one group."""
    meant = {letter: answer for answer, letter in LETTERS.items()}
    rows: list[tuple[bool, bool | None, int]] = []
    for number, block in enumerate(blocks):
        chosen, first = set(block.chosen(group)), number * len(block.job.worlds)
        said = getattr(block, whose)["said"][split]
        rows += [
            (poll.label == "yes", meant[letter], first + poll.image)
            for poll, letter in zip(block.job.polls[split], said, strict=True)
            if poll.image in chosen
        ]
    labels, answers, images = zip(*rows, strict=True)
    return list(labels), list(answers), list(images)


def rest(row: Any) -> str:
    return " | ".join(f"{100 * value:.1f}" for value in (row.precision, row.recall, row.f1, row.yes_ratio))


def caption_table(rows: dict[str, list[Block]], group: str) -> None:
    """Print CHAIR with its companions."""
    columns = "method | CHAIR_s | − greedy | CHAIR_i | − greedy | unique CHAIR_i | recall | − greedy | F1 | words"
    print(f"| {columns} | distinct-1 | distinct-4 | repeated items | cut off | images |\n|" + "---|" * 15)
    for name, blocks in rows.items():
        if name.startswith(CONSTANT):
            continue
        marks, before = fractions(blocks, group, "mine"), fractions(blocks, group, "greedy")
        figure = {key: ratio_interval(*parts) for key, parts in marks.items()}
        less = {key: "" if name == "greedy" else difference(before[key], marks[key]) for key in marks}
        row = [name]
        for key in ("chair_s", "chair_i"):
            row += [with_interval(figure[key]), less[key]]
        row += [f"{100 * figure['unique_i'].value:.1f}", with_interval(figure["recall"]), less["recall"]]
        row += [f"{100 * figure['f1'].value:.1f}", f"{figure['length'].value:.1f}"]
        row += [f"{text(blocks, group, key):.3f}" for key in ("distinct_1", "distinct_4")]
        row += [f"{100 * text(blocks, group, key):.1f}" for key in ("repeated", "unended")]
        print("| " + " | ".join([*row, str(len(marks["chair_s"][0]))]) + " |")


def fractions(blocks: Sequence[Block], group: str, whose: str) -> dict[str, Fraction]:
    """Return numerators and denominators of CHAIR's figures, [images of all blocks]."""
    counts = {
        name: np.concatenate([np.array(getattr(b, whose)["chair"][name])[b.chosen(group)] for b in blocks])
        for name in COUNTS
    }
    return Chair(**counts, source=blocks[0].mine["lexicon"]).fractions


def text(blocks: Sequence[Block], group: str, key: str) -> float:
    """Return mean over images; blocks keep nothing but their own means."""
    sizes = [len(block.chosen(group)) for block in blocks]
    return sum(n * b.mine["text"][group][key] for n, b in zip(sizes, blocks, strict=True)) / sum(sizes)


def accuracy(marks: Fraction) -> Interval:
    """Return the bootstrap interval; where all answers are right, or all wrong, Wilson's over images."""
    figure, images = ratio_interval(*marks), len(marks[0])
    return Interval(figure.value, *wilson(round(figure.value * images), images)) if figure.value in (0, 1) else figure


def with_interval(figure: Interval) -> str:
    return f"{100 * figure.value:.1f} ({100 * figure.low:.1f} to {100 * figure.high:.1f})"


def difference(before: Fraction, after: Fraction) -> str:
    """Return points more than greedy with the interval, bold where the interval leaves out zero."""
    return paired(paired_difference(before, after))

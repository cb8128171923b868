"""Does a click survive pruning? Share of answers whose point lies inside the target's box, on screens.

Generated screens are those of `vlmopt.synthetic`; real ones are windows of web pages that Chromium rendered, from pages
that were held out of training. On these pages controls stand on the model's cells of 14 px (`vlmopt make-screens
--cell 14`), and windows begin where cells do: the checkpoint reads nothing else, as `--cell 1` shows, which lets
windows begin at any pixel. Every selector at every budget, with plain positions ("keep") and with one marker per
dropped run ("pospad": the trained marker where tokens leave before the LLM, the mean of the run inside it); renumbering
is not defined for M-RoPE. Random and resize stand beside every method. Figures of the small bundled checkpoint say
nothing about real models.

    python benchmarks/grounding.py                 # most of an hour on two cores
    python benchmarks/grounding.py --targets 100 --keep 0.3
    python benchmarks/grounding.py --keep 0.3 --cell 1 --only "random, keep" "focus_ui, pospad"
    python benchmarks/grounding.py --tables        # Markdown of the newest results
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from table_parts import points
from tqdm import tqdm

import vlmopt
from common import RESULTS, append
from pages import Pages, pages
from vlmopt.metrics import mean_interval, wilson
from vlmopt.prompt import chat
from vlmopt.pruning import DivPrune, FastV, FirstPass, FocusUI, InstructionSimilarity, Random, Resize, UIGraph
from vlmopt.synthetic import Question, screen
from vlmopt.synthetic.base import Box
from vlmopt.synthetic.words import CELL, LABELS
from vlmopt.training.evaluate import correct

CHECKPOINT = "tiny-qwen"
KEEP = (0.5, 0.3, 0.1)
SIDE = 224  # pixels of a window
FIRST_SEED = 630_000_000  # no training image has it
BATCH = 64
NEW_TOKENS = 8  # "(105, 49)" and the end


@dataclass(frozen=True)
class Target:
    """An image, what to click, and where that is."""

    image: Image.Image
    question: Question
    sort: str  # "generated", "real text", "real icon"


def generated(count: int, seed: int = FIRST_SEED) -> list[Target]:
    """Return the first click question of each of `count` drawn screens."""
    targets: list[Target] = []
    while len(targets) < count:
        world = screen(seed, (SIDE, SIDE))
        question = next((q for q in world.questions if q.kind == "click"), None)
        if question is not None:
            targets.append(Target(world.image, question, "generated"))
        seed += 1
    return targets


def real(found: Pages, count: int, seed: int = FIRST_SEED, cell: int = CELL) -> list[Target]:
    """Return windows of held-out pages, each around one target whose name the checkpoint can read, at a random place.

    Windows begin at multiples of `cell` pixels; those of training began where the model's cells do. Fewer targets than
    `count` are a ValueError.
    """
    known = {f"Click {label}." for label in LABELS}
    fitting = [row for row in found.rows if row["instruction"] in known and max(row["bbox"][2:]) < SIDE]
    if count > len(fitting):
        raise ValueError(f"{found.name}: {len(fitting)} targets, not {count}; make more pages or ask for fewer")
    random.Random(seed).shuffle(fitting)
    chosen = enumerate(fitting[:count])
    return [window(found.folder, row, random.Random(f"window/{number}"), cell) for number, row in chosen]


def window(folder: Path, entry: dict[str, Any], rng: random.Random, cell: int) -> Target:
    page = Image.open(folder / entry["img_filename"]).convert("RGB")
    x, y, width, height = entry["bbox"]
    left, top = start(rng, x, width, page.width, cell), start(rng, y, height, page.height, cell)
    box: Box = (round(x - left), round(y - top), round(x - left + width), round(y - top + height))
    image = page.crop((left, top, left + SIDE, top + SIDE))
    return Target(image, Question(entry["instruction"], "", "click", box), f"real {entry['data_type']}")


def start(rng: random.Random, low: float, length: float, whole: int, cell: int) -> int:
    first = -(-max(0, int(low + length) + 1 - SIDE) // cell)
    return cell * rng.randint(first, max(first, min(int(low), whole - SIDE) // cell))


def variants(keep_ratio: float) -> dict[str, Any]:
    """Return policies by "method, positions" at one budget."""
    before: dict[str, Any] = {
        "random": Random(keep_ratio=keep_ratio),
        "div_prune": DivPrune(keep_ratio=keep_ratio),
        "ui_graph": UIGraph(keep_ratio=keep_ratio),
        "instruction_similarity": InstructionSimilarity(keep_ratio=keep_ratio),
        "first_pass": FirstPass(keep_ratio=keep_ratio),
    }
    cells: dict[str, Any] = {"resize, keep": Resize(keep_ratio=keep_ratio)}
    for name, method in before.items():
        cells[f"{name}, keep"] = method
        cells[f"{name}, pospad"] = replace(method, positions="pospad", marker="trained", marker_from=CHECKPOINT)
    for positions in ("keep", "pospad"):
        cells[f"fastv, {positions}"] = FastV(keep_ratio=keep_ratio, layer=2, positions=positions)
    cells["focus_ui, keep"] = FocusUI(keep_ratio=keep_ratio, scorer=CHECKPOINT, positions="keep", marker="mean")
    cells["focus_ui, pospad, mean"] = FocusUI(keep_ratio=keep_ratio, scorer=CHECKPOINT, marker="mean")
    cells["focus_ui, pospad"] = FocusUI(keep_ratio=keep_ratio, scorer=CHECKPOINT)
    return cells


@torch.inference_mode()
def answers(model: Any, processor: Any, targets: Sequence[Target], policy: Any) -> tuple[list[str], dict[str, float]]:
    """Return the answer for each target, and means per target of tokens kept and markers."""
    said: list[str] = []
    kept = markers = 0
    with vlmopt.optimized(model, policy):
        for start in range(0, len(targets), BATCH):
            part = targets[start : start + BATCH]
            inputs = processor(
                text=[chat(processor, "image", 1, target.question.text) for target in part],
                images=[[target.image] for target in part],
                return_tensors="pt",
                padding=True,
            )
            out = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
            texts = processor.tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            said += [text.strip() for text in texts]
            samples = vlmopt.report(model).samples
            kept += sum(sample["visual_tokens_kept"] for sample in samples)
            markers += sum(sample["markers"] for sample in samples)
    return said, {"kept": kept / len(targets), "markers": markers / len(targets)}


def hits(targets: Sequence[Target], said: Sequence[str]) -> list[bool]:
    return [correct(target.question, text) for target, text in zip(targets, said, strict=True)]


def run(options: argparse.Namespace) -> None:
    model, processor = vlmopt.load_checkpoint(CHECKPOINT)
    plan = [(1.0, "dense", "dense")]
    plan += [(keep, name, policy) for keep in options.keep for name, policy in variants(keep).items()]
    if options.only:
        known = {name for _, name, _ in plan}
        if unknown := set(options.only) - known:
            raise SystemExit(f"--only {sorted(unknown)}: unknown; there are {', '.join(sorted(known))}")
        plan = [row for row in plan if row[1] in {"dense", *options.only}]
    seed, count = options.seed, options.targets
    asked: dict[str, tuple[list[Target], dict[str, str]]] = {}
    if "real" in options.on:  # first, so that a set too small is refused before anything is measured
        found = pages()
        asked["real"] = real(found, count, seed, options.cell), {"pages": found.name}
    if "generated" in options.on:
        asked["generated"] = generated(count, seed), {}
    for part, (targets, source) in asked.items():
        dense: list[bool] = []
        rows = []
        for keep_ratio, name, policy in tqdm(plan, desc=f"{part}, {len(targets)} targets"):
            said, tokens = answers(model, processor, targets, policy)
            hit = hits(targets, said)
            dense = dense or hit
            rows.append({"method": name, "keep_ratio": keep_ratio, **tokens, **summed(targets, hit, dense)})
            tqdm.write(f"{part:10s} {keep_ratio:4.2f} {name:32s} {percent(rows[-1])}")
        facts = {"checkpoint": CHECKPOINT, "targets": part, "of": len(targets), "seed": seed, "cell": options.cell}
        append("grounding", {**facts, **source, "rows": rows})


def summed(targets: Sequence[Target], hit: Sequence[bool], dense: Sequence[bool]) -> dict[str, Any]:
    sorts = sorted({target.sort for target in targets})
    by_sort = {s: [h for h, target in zip(hit, targets, strict=True) if target.sort == s] for s in sorts}
    return {
        "accuracy": sum(hit) / len(hit),
        "interval": wilson(sum(hit), len(hit)),
        "by_sort": {sort: [sum(marks), len(marks)] for sort, marks in by_sort.items()},
        "less_dense": mean_interval([float(a) - float(b) for a, b in zip(hit, dense, strict=True)]),
    }


def tables() -> None:
    """Print Markdown: methods down, budgets across, of the newest result of every cell."""
    newest: dict[tuple[Any, ...], dict[tuple[str, float], dict[str, Any]]] = {}
    for text in (RESULTS / "grounding.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(text)
        cells = newest.setdefault(tuple(record.get(key) for key in ("targets", "of", "cell", "seed", "pages")), {})
        cells.update({(row["method"], row["keep_ratio"]): row for row in record["rows"]})
    for (part, count, cell, seed, source), cells in newest.items():
        ratios = sorted({keep for name, keep in cells if name != "dense"}, reverse=True)
        begin = f" in {source}, windows begin at multiples of {cell} px" if part == "real" else ""
        print(f"\n**{part} screens, seed {seed}, {count} targets{begin}, dense {percent(cells['dense', 1.0])}**\n")
        shown = " | ".join(f"{keep:g}" for keep in ratios)
        print(f"| method, positions | {shown} | markers at {ratios[-1]:g} |")
        print("|---|" + "---|" * (len(ratios) + 1))
        for name in dict.fromkeys(name for name, _ in cells if name != "dense"):
            mine = [cells.get((name, keep)) for keep in ratios]
            markers = "" if mine[-1] is None else f"{mine[-1]['markers']:.0f}"
            print(f"| {name} | " + " | ".join(map(percent, mine)) + f" | {markers} |")
        if len(sorts := cells["dense", 1.0]["by_sort"]) > 1:
            by_sort(cells, ratios, sorts)


def by_sort(cells: dict[tuple[str, float], dict[str, Any]], ratios: Sequence[float], sorts: Iterable[str]) -> None:
    """Print Markdown: the same by what is clicked."""
    print(f"\n| method, positions: {' / '.join(sorts)} | " + " | ".join(f"{keep:g}" for keep in ratios) + " |")
    print("|---|" + "---|" * len(ratios))
    for name in dict.fromkeys(name for name, _ in cells):
        mine = [cells.get((name, 1.0 if name == "dense" else keep)) for keep in ratios]
        print(f"| {name} | " + " | ".join(shares(row["by_sort"], sorts) if row else "" for row in mine) + " |")


def shares(right: dict[str, list[int]], sorts: Iterable[str]) -> str:
    return " / ".join(f"{100 * hit / of:.1f}" for hit, of in (right[sort] for sort in sorts))


def percent(row: dict[str, Any] | None) -> str:
    """Write a share with half the width of its interval, and the paired difference from dense where it is known."""
    if row is None:
        return ""
    low, high = row["interval"]
    text = f"{100 * row['accuracy']:.1f} ± {50 * (high - low):.1f}"
    if row["keep_ratio"] == 1 or "less_dense" not in row:
        return text
    return f"{text}, {points(row['less_dense'])}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", type=int, default=500, help="of each kind")
    parser.add_argument("--keep", type=float, nargs="+", default=list(KEEP))
    parser.add_argument("--on", nargs="+", choices=("generated", "real"), default=["generated", "real"])
    parser.add_argument("--only", nargs="+", help='names of variants, such as "random, keep"; dense always runs')
    parser.add_argument("--seed", type=int, default=FIRST_SEED, help="of the screens drawn and the windows chosen")
    parser.add_argument("--cell", type=int, default=CELL, help="pixels to whose multiples windows begin; 1: anywhere")
    parser.add_argument("--tables", action="store_true", help="print Markdown of what was measured, and stop")
    options = parser.parse_args()
    tables() if options.tables else run(options)


if __name__ == "__main__":
    main()

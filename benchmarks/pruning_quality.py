"""What does each selector cost in right answers? Every method at every budget on the same fresh questions.

Random and resize stand beside every method: one that does not beat them earns nothing (a tower of one image size, as
in LLaVA-1.5, cannot be resized). Every question is about an image of its own, and several blocks of seeds are asked,
so that a difference that only one draw of images shows is told from one that stays. "layers" is the share of visual
tokens averaged over the decoder layers: methods that cut inside the LLM pay for all tokens below their cut, so only
rows with the same share are on one budget. "padding" is the share of kept tokens that show padding, known from the size
of the image. "slope" is the bias of the selection: sigma of exp(sigma * x) fitted to how often a token at raster
place x was kept; 0 means that position decides nothing. Figures of the small bundled checkpoints say nothing about
real models.

    export PYTHONPATH=.
    python benchmarks/pruning_quality.py --checkpoint tiny-llava --profile benchmarks/profiles/tiny-llava.json
    python benchmarks/pruning_quality.py --tables                     # Markdown: every method, and "A + B" less "A"
    python benchmarks/pruning_quality.py --tables --against random    # Markdown: every method less another
    python benchmarks/pruning_quality.py --write                      # the first form into docs/benchmarks.md
"""

from __future__ import annotations

import argparse
import copy
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

import pruning_tables
import vlmopt
from common import append
from pruning_variants import LAYER, LAYERS, variants
from tests.support.padding import square_padding
from vlmopt.calibration import Profile
from vlmopt.families import family_of
from vlmopt.prompt import chat
from vlmopt.pruning import Projector, VisionAttention, VisionKeys
from vlmopt.pruning.trend import fit_exponential
from vlmopt.synthetic import Question, World, scene, screen
from vlmopt.synthetic.asked import SIZES, SIZES_OF
from vlmopt.training.evaluate import correct

KEEP = (0.22, 0.11, 0.056)
# What is asked, in turn: the kinds with short answers.
KINDS = tuple((scene, kind) for kind in ("presence", "colour", "shape", "count", "where", "point")) + tuple(
    (screen, kind) for kind in ("presence", "count", "click", "widget", "label", "title")
)
FIRST_SEED = 611_000_000  # training uses 1e9 and up, calibration 4e8, the model cards 5e8
BLOCK_SEEDS = 100_000
BATCH = 64
NEW_TOKENS = 12  # the longest answer here has seven


@dataclass
class Tally:
    """What was seen of one variant."""

    marks: list[bool] = field(default_factory=list)  # in the order of the questions
    shares: list[float] = field(default_factory=list)  # of visual tokens, layer average
    kept: Tensor = field(default_factory=lambda: torch.zeros(64, dtype=torch.float64))  # by raster place, first cut
    offered: Tensor = field(default_factory=lambda: torch.zeros(64, dtype=torch.float64))
    padding: int = 0
    tokens: int = 0

    def add(self, part: Sequence[tuple[World, Question]], answers: Sequence[str], report: Any, pads: bool) -> None:
        for row, ((world, question), answer) in enumerate(zip(part, answers, strict=True)):
            self.marks.append(correct(question, answer))
            sample = report.samples[row]
            self.shares.append(sample["layer_average"] / sample["visual_tokens"])
            (m,) = report.maps(row)
            place = torch.arange(len(m.kept)) * 64 // len(m.kept)
            self.kept.index_add_(0, place, m.kept.double())
            self.offered.index_add_(0, place, torch.ones(len(place), dtype=torch.float64))
            self.tokens += int(m.kept.sum())
            if pads:
                blank = square_padding(*world.size, m.grid[1])
                self.padding += int((m.kept & blank[m.coords[:, 1], m.coords[:, 2]]).sum())

    def row(self, name: str, keep_ratio: float, pads: bool) -> dict[str, Any]:
        """Return a JSON-ready entry."""
        frequency = self.kept / self.offered.clamp_min(1)
        return {
            "method": name,
            "keep_ratio": keep_ratio,
            "marks": "".join("1" if mark else "0" for mark in self.marks),
            "layers": sum(self.shares) / len(self.shares),
            "padding": self.padding / self.tokens if pads else None,
            "slope": fit_exponential(frequency)[1] if int((frequency > 0).sum()) > 1 else None,
        }


def questions(count: int, first_seed: int, model_type: str) -> list[tuple[World, Question]]:
    """Draw a question about each of `count` images, kinds in turn; sorted so that batches hold prompts of one shape."""
    sizes = SIZES_OF.get(model_type, SIZES)
    asked: list[tuple[World, Question]] = []
    seed = first_seed
    while len(asked) < count:
        turn, (draw, kind) = len(asked) // len(KINDS), KINDS[len(asked) % len(KINDS)]
        world = draw(seed, sizes[turn % len(sizes)], questions=40)
        asked += [(world, question) for question in world.questions if question.kind == kind][:1]
        seed += 1
    return sorted(asked, key=lambda pair: (pair[0].size, len(pair[1].answer), len(pair[1].text)))


@dataclass(frozen=True)
class Prompts:
    """A batch of questions and its model inputs, made once for all variants."""

    asked: Sequence[tuple[World, Question]]
    inputs: dict[str, Tensor]


def prepared(processor: Any, asked: Sequence[tuple[World, Question]]) -> list[Prompts]:
    out = []
    for start in range(0, len(asked), BATCH):
        part = asked[start : start + BATCH]
        text = [chat(processor, "image", 1, question.text) for _, question in part]
        images = [[world.image] for world, _ in part]
        out.append(Prompts(part, dict(processor(text=text, images=images, return_tensors="pt", padding=True))))
    return out


@contextmanager
def remembered(tower: Any, store: dict[int, Any], policy: Any) -> Iterator[None]:
    """Reuse the tower's output from its first run on the same pixels, for methods that read nothing inside it."""
    inside = (Projector, VisionAttention, VisionKeys)
    cuts = vlmopt.Policy.load(policy).prune
    reads = any(isinstance(signal, inside) for cut in cuts for signal in cut.captures)
    if reads or any(cut.resizes_pixels or cut.before_tower for cut in cuts):
        yield
        return
    original = tower.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        pixels = args[0] if args else kwargs["pixel_values"]
        if pixels.data_ptr() not in store:
            store[pixels.data_ptr()] = original(*args, **kwargs)
        return copy.copy(store[pixels.data_ptr()])

    tower.forward = forward
    try:
        yield
    finally:
        del tower.forward


@torch.inference_mode()
def measure(
    model: Any, processor: Any, prompts: Sequence[Prompts], policy: Any, pads: bool, store: dict[int, Any]
) -> Tally:
    tally = Tally()
    tower = model.get_submodule(family_of(model.config).vision_tower)
    with vlmopt.optimized(model, policy), remembered(tower, store, policy):
        for batch in prompts:
            out = model.generate(**batch.inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
            new = out[:, batch.inputs["input_ids"].shape[1] :]
            answers = [text.strip() for text in processor.tokenizer.batch_decode(new, skip_special_tokens=True)]
            tally.add(batch.asked, answers, vlmopt.report(model), pads)
    return tally


def run(options: argparse.Namespace) -> None:
    model, processor = vlmopt.load_checkpoint(options.checkpoint)
    pads = bool(getattr(processor.image_processor, "do_pad", False))
    profile = Profile.load(options.profile) if options.profile else None
    plan: dict[float, dict[str, Any]] = {1.0: {"dense": "dense"}}
    plan |= {keep_ratio: variants(keep_ratio, pads, profile) for keep_ratio in options.keep}
    if options.only:
        known = set().union(*plan.values())
        if unknown := set(options.only) - known:
            raise SystemExit(f"--only {sorted(unknown)}: unknown; there are {', '.join(sorted(known))}")
        plan = {keep: {n: m for n, m in cells.items() if n in options.only} for keep, cells in plan.items()}
    with tqdm(total=options.blocks * sum(map(len, plan.values())), desc=options.checkpoint) as bar:
        for block in range(options.first_block, options.first_block + options.blocks):
            first_seed = FIRST_SEED + block * BLOCK_SEEDS
            asked = questions(options.questions, first_seed, model.config.model_type)
            prompts, store = prepared(processor, asked), {}
            rows = []
            for keep_ratio, cells in plan.items():
                for name, policy in cells.items():
                    tally = measure(model, processor, prompts, policy, pads, store)
                    rows.append(tally.row(name, keep_ratio, pads))
                    bar.write(f"block {block} {name:28s} {keep_ratio:5.3f} {sum(tally.marks)} of {len(asked)}")
                    bar.update()
            record = {
                "checkpoint": options.checkpoint,
                "block": block,
                "first_seed": first_seed,
                "kinds": [question.kind for _, question in asked],
                "profile": options.profile and hashlib.sha256(options.profile.read_bytes()).hexdigest()[:16],
                "cuts": {"fastv, sparse_vlm": LAYER, "pyramid_drop": LAYERS},
                "rows": rows,
            }
            append("pruning_quality", record)  # block by block, so that an interrupted run leaves what it has


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="tiny-llava")
    parser.add_argument("--blocks", type=int, default=3, help="of seeds; intervals are over the images of all")
    parser.add_argument("--first-block", type=int, default=0, help="to add blocks to what was measured")
    parser.add_argument("--questions", type=int, default=144, help="in a block, each about an image of its own")
    parser.add_argument("--keep", type=float, nargs="+", default=list(KEEP))
    parser.add_argument("--profile", type=Path, help="by `vlmopt calibrate`; without it there are no '+ trend' rows")
    parser.add_argument("--only", nargs="+", help="names of variants")
    parser.add_argument("--tables", action="store_true", help="print Markdown of what was measured, and stop")
    parser.add_argument("--against", help="with --tables: differences of every method from this one")
    parser.add_argument("--write", action="store_true", help="put these tables into docs/benchmarks.md, and stop")
    options = parser.parse_args()
    if options.write:
        pruning_tables.write()
    elif options.tables:
        print(pruning_tables.tables(options.against))
    else:
        run(options)


if __name__ == "__main__":
    main()

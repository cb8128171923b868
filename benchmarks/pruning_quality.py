"""What does each selector cost in right answers? Every method at every budget on the same fresh questions.

Random and resize stand beside every method: one that does not beat them earns nothing (a tower of one picture size, as
in LLaVA-1.5, cannot be resized). "layers" is the share of visual tokens averaged over the decoder layers: methods that
cut inside the LLM pay for all tokens below their cut, so only rows with the same share are on one budget. "padding" is
the share of kept tokens that show padding, known from the size of the picture. "slope" is the bias of the selection:
sigma of exp(sigma * x) fitted to how often a token at raster place x was kept; 0 means that position decides nothing.
Figures of the small bundled checkpoints say nothing about real models.

    python benchmarks/pruning_quality.py --checkpoint tiny-llava --profile benchmarks/profiles/tiny-llava.json
    python benchmarks/pruning_quality.py --tables          # Markdown of the last run of each checkpoint
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

import vlmopt
from common import RESULTS, append
from vlmopt.calibration import Profile
from vlmopt.families import family_of
from vlmopt.prompt import chat
from vlmopt.pruning import (
    CDPruner,
    CenPrune,
    Debias,
    DivPrune,
    FastV,
    HoloV,
    Projector,
    PyramidDrop,
    Random,
    Resize,
    Selector,
    SparseVLM,
    Uniform,
    VisionAttention,
    VisionKeys,
    VisionZip,
    VisPruner,
    ZeroOrder,
)
from vlmopt.pruning.padding import square_padding
from vlmopt.pruning.trend import fit_exponential
from vlmopt.synthetic import Question, World
from vlmopt.training.evaluate import SIZES, SIZES_OF, correct, one_of_each_kind, wilson

KEEP = (0.22, 0.11, 0.5, 0.33, 0.056)
SHORT = ("presence", "colour", "shape", "count", "where", "point", "click", "widget", "label", "title")
FIRST_SEED = 610_000_000  # training uses 1e9 and up, calibration 4e8, the model cards 5e8
LAYER = 2  # FastV, SparseVLM: the papers' K; heads of later layers were taught to look at the object asked about
LAYERS = (2, 3, 4)  # PyramidDrop
BATCH = 64
NEW_TOKENS = 12  # the longest answer here has seven


def variants(keep_ratio: float, pads: bool, profile: Profile | None) -> dict[str, Selector]:
    """Methods by name at one budget; "+ PAS" suppresses padding, "+ trend" divides a measured trend out."""
    tower = -2 if pads else -1  # the block whose features the projector reads
    methods: dict[str, Selector] = {
        "random": Random(keep_ratio=keep_ratio),
        "uniform": Uniform(keep_ratio=keep_ratio),
        "zeroth_order": ZeroOrder(keep_ratio=keep_ratio),
        "div_prune": DivPrune(keep_ratio=keep_ratio),
        "cd_pruner": CDPruner(keep_ratio=keep_ratio),
        "cd_pruner, no question": CDPruner(keep_ratio=keep_ratio, relevance="none"),
        "cen_prune": CenPrune(keep_ratio=keep_ratio),
        "vision_zip": VisionZip(keep_ratio=keep_ratio, tower_layer=tower),
        "vis_pruner": VisPruner(keep_ratio=keep_ratio, tower_layer=tower),
        "holov": HoloV(keep_ratio=keep_ratio, tower_layer=tower),
    }
    if pads:
        for name in ("uniform", "zeroth_order", "div_prune", "vision_zip"):
            methods[f"{name} + PAS"] = padded(methods[name])
    else:
        methods["resize"] = Resize(keep_ratio=keep_ratio)
    for host in (
        FastV(keep_ratio=keep_ratio, layer=LAYER),
        PyramidDrop(keep_ratio=keep_ratio, layers=LAYERS),
        SparseVLM(keep_ratio=keep_ratio, layers=(LAYER,)),
    ):
        methods[host.name] = host
        if pads:
            methods[f"{host.name} + PAS"] = padded(host)
        if profile is not None:
            methods[f"{host.name} + trend"] = Debias(host, fit="offline", profile=profile.trend(host))
            if pads:
                both = padded(host)
                methods[f"{host.name} + PAS + trend"] = Debias(both, fit="offline", profile=profile.trend(both))
        methods[f"{host.name} + own trend"] = Debias(padded(host) if pads else host, fit="per_sample")
    return methods


def padded(method: Any) -> Any:
    """The same method, padding no candidate."""
    return replace(method, padding="square")


@dataclass
class Tally:
    """What was seen of one variant."""

    marks: dict[str, list[bool]] = field(default_factory=dict)
    shares: list[float] = field(default_factory=list)  # of visual tokens, layer average
    kept: Tensor = field(default_factory=lambda: torch.zeros(64, dtype=torch.float64))  # by raster place, first cut
    offered: Tensor = field(default_factory=lambda: torch.zeros(64, dtype=torch.float64))
    padding: int = 0
    tokens: int = 0

    def add(self, part: Sequence[tuple[World, Question]], answers: Sequence[str], report: Any, pads: bool) -> None:
        for row, ((world, question), answer) in enumerate(zip(part, answers, strict=True)):
            self.marks.setdefault(question.kind, []).append(correct(question, answer))
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
        """JSON-ready."""
        every = [mark for marks in self.marks.values() for mark in marks]
        frequency = self.kept / self.offered.clamp_min(1)
        return {
            "method": name,
            "keep_ratio": keep_ratio,
            "layers": sum(self.shares) / len(self.shares),
            "accuracy": sum(every) / len(every),
            "interval": wilson(sum(every), len(every)),
            "of": len(every),
            "kinds": {kind: sum(marks) / len(marks) for kind, marks in sorted(self.marks.items())},
            "padding": self.padding / self.tokens if pads else None,
            "slope": fit_exponential(frequency)[1] if int((frequency > 0).sum()) > 1 else None,
        }


def questions(count: int, model_type: str) -> list[tuple[World, Question]]:
    """`count` questions of every short kind in turn, sorted so that batches hold prompts of one shape."""
    sizes = SIZES_OF.get(model_type, SIZES)
    pairs = (pair for pair in one_of_each_kind(count, FIRST_SEED, sizes) if pair[1].kind in SHORT)
    asked = [pair for pair, _ in zip(pairs, range(count), strict=False)]
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
    """The tower's output from its first run on the same pixels, for methods that read nothing inside it."""
    inside = (Projector, VisionAttention, VisionKeys)
    if isinstance(policy, Selector) and (policy.resizes_pixels or any(isinstance(n, inside) for n in policy.captures)):
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
    prompts = prepared(processor, questions(options.questions, model.config.model_type))
    plan: dict[float, dict[str, Any]] = {1.0: {"dense": "dense"}}
    plan |= {keep_ratio: variants(keep_ratio, pads, profile) for keep_ratio in options.keep}
    if options.only:
        plan = {keep: {n: m for n, m in cells.items() if n in options.only} for keep, cells in plan.items()}
    store: dict[int, Any] = {}
    with tqdm(total=sum(map(len, plan.values())), desc=options.checkpoint) as bar:
        for keep_ratio, cells in plan.items():
            rows = []
            for name, policy in cells.items():
                tally = measure(model, processor, prompts, policy, pads, store)
                rows.append(tally.row(name, keep_ratio, pads))
                bar.write(line(rows[-1]))
                bar.update()
            record = {
                "checkpoint": options.checkpoint,
                "profile": None if profile is None else profile.data,
                "cuts": {"fastv, sparse_vlm": LAYER, "pyramid_drop": LAYERS},
                "rows": rows,
            }
            append("pruning_quality", record)  # budget by budget, so that an interrupted run leaves what it has


def line(row: dict[str, Any]) -> str:
    low, high = row["interval"]
    padding = "" if row["padding"] is None else f" padding {100 * row['padding']:4.1f} %"
    slope = "" if row["slope"] is None else f" slope {row['slope']:+.2f}"
    return (
        f"{row['method']:28s} {row['keep_ratio']:5.3f} {100 * row['accuracy']:5.1f} % "
        f"({100 * low:.1f}-{100 * high:.1f}) layers {100 * row['layers']:5.1f} %{padding}{slope}"
    )


def tables() -> None:
    """Markdown: methods down, budgets across, of the newest result of every cell."""
    newest: dict[str, dict[tuple[str, float], dict[str, Any]]] = {}
    for text in (RESULTS / "pruning_quality.jsonl").read_text().splitlines():
        record = json.loads(text)
        cells = newest.setdefault(record["checkpoint"], {})
        cells.update({(row["method"], row["keep_ratio"]): row for row in record["rows"]})
    for checkpoint, cells in newest.items():
        dense = cells.get(("dense", 1.0))
        ratios = sorted({keep for name, keep in cells if name != "dense"}, reverse=True)
        title = f"{checkpoint}, {dense['of']} questions, dense {percent(dense)}" if dense else checkpoint
        print(
            f"\n**{title}**\n\n| method | "
            + " | ".join(f"{keep:g}" for keep in ratios)
            + " | layers | slope | padding |"
        )
        print("|---|" + "---|" * (len(ratios) + 3))
        for name in dict.fromkeys(name for name, _ in cells if name != "dense"):
            mine = [cells.get((name, keep)) for keep in ratios]
            last = next(cell for cell in (cells.get((name, 0.22)), *mine) if cell)
            slope = "" if last["slope"] is None else f"{last['slope']:+.2f}"
            padding = "" if last["padding"] is None else f"{100 * last['padding']:.0f} %"
            shown = " | ".join("" if cell is None else percent(cell) for cell in mine)
            print(f"| {name} | {shown} | {100 * last['layers']:.0f} % | {slope} | {padding} |")


def percent(row: dict[str, Any]) -> str:
    low, high = row["interval"]
    return f"{100 * row['accuracy']:.1f} ± {50 * (high - low):.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="tiny-llava")
    parser.add_argument("--questions", type=int, default=520)
    parser.add_argument("--keep", type=float, nargs="+", default=list(KEEP))
    parser.add_argument("--profile", help="written by `vlmopt calibrate`; without it there are no '+ trend' rows")
    parser.add_argument("--only", nargs="+", help="names of variants")
    parser.add_argument("--tables", action="store_true", help="print Markdown of what was measured, and stop")
    options = parser.parse_args()
    if options.tables:
        tables()
    else:
        run(options)


if __name__ == "__main__":
    main()

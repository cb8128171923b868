"""Run both stages: the scorer on frozen features, then marker and language model under PosPad (arXiv 2601.03928)."""

from __future__ import annotations

import random
import zlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vlmopt.families import click_units
from vlmopt.loading import Loaded, load
from vlmopt.prompt import placed
from vlmopt.pruning import Scorer, kl_loss
from vlmopt.pruning.base import top
from vlmopt.pruning.budget import kept_tokens
from vlmopt.runtime.structure import structure_of
from vlmopt.scorers import TrainedScorer, facts, save

from .examples import Examples, Mixed, examples
from .loop import Loop
from .prompts import Prompts, prompts
from .settings import Settings
from .watch import Batch, Seen, Watch, look, scored, watched

PAPER_WIDTH, SCORER_RATE, MODEL_RATE = 2048, 1e-4, 5e-6  # narrower models learn at rates that grow as they shrink
SCORER_WEIGHT = 0.1  # of the scorer's loss beside that of the language model
RETENTION = (0.1, 1.0)  # uniform
SHOWN = 0.3  # retention of the log's recall
MODEL_START = 1_000_000_000  # number of the second stage's first example
FIRST_MARKERS = 8  # examples whose cells the marker starts as the mean of


class Training:
    """One run in this process, which may be one of several of an accelerator."""

    def __init__(self, settings: Settings, accelerator: Any) -> None:
        self.settings, self.accelerator = settings, accelerator
        self.share, rest = divmod(settings.batch_size, accelerator.num_processes)
        if rest or not self.share:
            raise ValueError(
                f"--batch-size {settings.batch_size} must be a multiple of the {accelerator.num_processes} processes"
            )
        self.loaded: Loaded = load(settings.model, device=str(accelerator.device), dtype=settings.dtype)
        self.model, self.processor = self.loaded.model.requires_grad_(False), self.loaded.processor
        width = self.model.get_input_embeddings().weight.shape[1]
        grown = max(1.0, PAPER_WIDTH / width)
        self.rates = {
            "scorer": settings.rate_scorer or SCORER_RATE * grown,
            "model": settings.rate_model or MODEL_RATE * grown,
        }
        torch.manual_seed(settings.seed)
        self.scorer = Scorer(width, settings.heads, settings.pooling).to(accelerator.device)
        settings.out.mkdir(parents=True, exist_ok=True)
        self.examples: Examples = Mixed([
            examples(
                data, settings.seed, self.model.config.model_type, self.resized, settings.out,
                boxes=settings.boxes, images=settings.images, units=settings.points or click_units(self.model.config),
            )
            for data in settings.data
        ])  # fmt: skip

    def run(self) -> None:
        """Run both stages, or what is left of them; write `scorer` and, after the second, `checkpoint`."""
        settings = self.settings
        try:
            with watched(self.model, self.scorer, None) as watch:
                self.scorer_loop().run(lambda step: self.scorer_work(watch, step))
            if not (settings.steps_model and (settings.out / "model.pt").exists()):  # else the marker would be lost
                self.save(None, settings.model)
            if settings.steps_model:
                marker = nn.Parameter(self.first_marker())
                loop = self.model_loop(marker)
                with watched(self.model, self.scorer, marker) as watch:
                    loop.run(lambda step: self.model_work(watch, step))
                if self.accelerator.is_main_process:
                    self.model.save_pretrained(settings.out / "checkpoint")
                    self.processor.save_pretrained(settings.out / "checkpoint")
                self.save(marker, f"{settings.out.name}/checkpoint")
        finally:
            self.examples.close()

    def scorer_loop(self) -> Loop:
        settings = self.settings
        groups = [(self.rates["scorer"], named(self.scorer, "scorer"))]
        path, request = settings.out / "scorer.pt", settings.request("steps_scorer")
        return Loop(self.accelerator, path, groups, settings.steps_scorer, request, settings.save_every)

    def model_loop(self, marker: nn.Parameter) -> Loop:
        """Make the loop of the second stage: the decoder and its head learn, their word embeddings do not.

        The scorer and the tower speak in these embeddings.
        """
        settings = self.settings
        decoder = structure_of(self.model).decoder
        parts = {"": self.model} if settings.tower else {"decoder": decoder, "head": self.model.get_output_embeddings()}
        table = self.model.get_input_embeddings().weight
        learned: dict[str, nn.Parameter] = {}
        for prefix, part in parts.items():
            learned |= {n: p for n, p in named(part, prefix).items() if p is not table and p.is_floating_point()}
        for p in learned.values():
            p.requires_grad_(True)
        groups = [
            (self.rates["model"], learned),
            (self.rates["scorer"], {**named(self.scorer, "scorer"), "marker": marker}),
        ]
        path = settings.out / "model.pt"
        request = settings.request("steps_scorer", "steps_model", "rate_model", "tower")
        return Loop(self.accelerator, path, groups, settings.steps_model, request, settings.save_every)

    def scorer_work(self, watch: Watch, step: int) -> tuple[Tensor, dict[str, float]]:
        """Return the loss of this process's share of a batch, by the scorer alone."""
        numbers = self.numbers(step)
        drawn = [self.examples.draw(number, clicks=True) for number in numbers]
        asked = prompts(self.processor, drawn, answered=False)
        self.scorer.train()
        with self.accelerator.autocast():
            seen = look(self.model, watch, self.inputs(asked), asked.boxes)
            pairs = zip(seen, numbers, strict=True)
            scores = [scored(self.scorer, one, self.draw("dropout", number)) for one, number in pairs]
        losses = [kl_loss(s, one.label) for s, one in zip(scores, seen, strict=True)]
        return torch.stack(losses).mean(), {"recall": mean_recall(scores, seen, asked)}

    def model_work(self, watch: Watch, step: int) -> tuple[Tensor, dict[str, float]]:
        """Return the loss of this process's share of a batch, by LLM and scorer; every example keeps its own share."""
        numbers = [MODEL_START + number for number in self.numbers(step)]
        drawn = [self.examples.draw(number, clicks=False) for number in numbers]
        asked = prompts(self.processor, drawn, answered=True)
        ratios = [random.Random(self.draw("ratio", number)).uniform(*RETENTION) for number in numbers]
        seeds = [self.draw("dropout", number) for number in numbers]
        batch = Batch(asked.boxes, asked.answers, list(zip(ratios, seeds, strict=True)))
        watch.now[:] = [batch]
        self.scorer.train()
        with self.accelerator.autocast():
            out = self.model(**self.inputs(asked), labels=asked.labels.to(self.accelerator.device), use_cache=False)
        everybody = self.accelerator.reduce(torch.tensor(asked.asked, device=self.accelerator.device), reduction="sum")
        answers = out.loss.float() * (asked.asked * self.accelerator.num_processes / int(everybody))
        pairs = zip(batch.scores, batch.seen, asked.boxes, strict=True)
        cells = sum((kl_loss(s, one.label) for s, one, boxes in pairs if len(boxes)), torch.zeros_like(answers))
        figures = {"answers": float(answers.detach()), "recall": mean_recall(batch.scores, batch.seen, asked)}
        return answers + SCORER_WEIGHT * cells / self.share, figures

    def numbers(self, step: int) -> range:
        """Return the running numbers of the examples of this process."""
        first = step * self.settings.batch_size + self.accelerator.process_index * self.share
        return range(first, first + self.share)

    def draw(self, what: str, number: int) -> int:
        """Return a number below 2**32 that belongs to one example of this run, whoever works on it."""
        return zlib.crc32(f"{what}/{self.settings.seed}/{number}".encode())

    def inputs(self, asked: Prompts) -> dict[str, Any]:
        return placed(asked.inputs, self.accelerator.device, self.model.dtype)

    def resized(self, image: Any) -> tuple[int, int]:
        """Return (width, height) of an image behind the processor, where it says so."""
        how = self.processor.image_processor
        grids = how(images=[image], return_tensors="pt").get("image_grid_thw")
        if grids is None:
            raise ValueError(f"{type(how).__name__} does not say how it resizes; give --points pixels")
        _, h, w = grids[0].tolist()
        return w * how.patch_size, h * how.patch_size

    def first_marker(self) -> Tensor:
        """Return the marker to start from, [D]: the mean of the visual tokens of some examples."""
        drawn = [self.examples.draw(MODEL_START + number, clicks=True) for number in range(FIRST_MARKERS)]
        asked = prompts(self.processor, drawn, answered=False)
        with watched(self.model, self.scorer, None) as watch:
            seen = look(self.model, watch, self.inputs(asked), asked.boxes)
        return torch.cat([one.visual for one in seen]).float().mean(0)

    def save(self, marker: Tensor | None, name: str) -> None:
        """Write the scorer in the form in which it is used."""
        if not self.accelerator.is_main_process:
            return
        settings = self.settings
        how = {
            "data": list(settings.data),
            "steps": {"scorer": settings.steps_scorer, "model": settings.steps_model if marker is not None else 0},
            "batch_size": settings.batch_size,
            "seed": settings.seed,
            "rates": self.rates,
        }
        model, learned = {**facts(self.model), "name_or_path": name}, None if marker is None else marker.detach()
        save(TrainedScorer(self.scorer.eval(), learned, model, how), settings.out / "scorer")


def named(module: nn.Module, prefix: str) -> dict[str, nn.Parameter]:
    return {f"{prefix}.{name}": p for name, p in module.named_parameters()}


def mean_recall(scores: list[Tensor], seen: list[Seen], asked: Prompts) -> float:
    """Return the share of the cells best covered by a box among the best `SHOWN` by score; mean over examples."""
    found = []
    for s, one, boxes in zip(scores, seen, asked.boxes, strict=True):
        if len(boxes):
            wanted = one.label > 0.5 * one.label.max()
            best = top(s.detach(), kept_tokens(len(s), SHOWN, None))
            found.append(float(wanted[best].sum() / wanted.sum()))
    return sum(found) / len(found) if found else 0.0


def train(settings: Settings) -> Mapping[str, float]:
    """Train as set; an interrupted run goes on. Return the learning rates.

    Raises:
        ValueError: settings, model or data that cannot work, or a run of others in the same directory.
    """
    from accelerate import Accelerator
    from accelerate.utils import DistributedType

    accelerator = Accelerator(cpu=settings.device == "cpu")
    if accelerator.distributed_type not in (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU):
        raise ValueError(
            f"{accelerator.distributed_type} splits the model, which this training does not support; launch plain "
            "data-parallel processes"
        )
    training = Training(settings, accelerator)
    training.run()
    return training.rates

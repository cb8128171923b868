"""Train a bundled checkpoint from scratch: `python -m vlmopt.training.worlds --out DIR --architecture qwen|llava`.

The tower and the language model are trained apart, against the same frozen word embeddings, then together on rendered
images; then the language model learns what usually goes together; last, `qwen` learns to read web pages, which a
Chromium renders. Every stage resumes from DIR, and the finished checkpoint is written to DIR/checkpoint.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist

from vlmopt.focusui.schedule import Schedule
from vlmopt.synthetic.web.stored import Windows, make, windows

from .architecture import Architecture
from .data import Packer, Share
from .export import export
from .joint import JointStage
from .language import LanguageStage, Reader
from .llava import LLAVA
from .loop import Loop, restore
from .prior import PriorStage
from .qwen import QWEN
from .sheets import sheets
from .tower import TowerStage
from .type import SIZE, TypeStage
from .vocabulary import build_tokenizer
from .web import WebStage

SEED = 0
ARCHITECTURES: dict[str, Architecture] = {"qwen": QWEN, "llava": LLAVA}
STAGES = ("tower", "language", "joint", "prior", "type", "web", "export")
# Images a step, shared among the workers.
BATCH = {"tower": 16, "language": 32, "joint": 24, "prior": 24, "type": 24, "web": 24}
# Number of a stage's first image.
START = {"tower": 0, "language": 0, "joint": 1_000_000, "prior": 2_000_000, "type": 3_000_000, "web": 4_000_000}
MODULE = "vlmopt.training.worlds"
SHEET = {SIZE: 1.0}
# Spares the page faults of large tensors, which glibc hands back to the system whenever they are freed.
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**33), "MALLOC_TRIM_THRESHOLD_": str(2**34), "MALLOC_ARENA_MAX": "1"}
AVERAGE = {"joint": 0.995, "prior": 0.98, "type": 0.98, "web": 0.98}  # of the weights
SHEETS, WINDOWS = 4_000, 4_000  # rendered images, drawn from again and again


class Trainer:
    """One stage of one run, in this process."""

    def __init__(
        self, out: Path, architecture: Architecture, steps: dict[str, int], rank: int = 0, workers: int = 1
    ) -> None:
        self.out, self.architecture, self.steps, self.rank, self.workers = out, architecture, steps, rank, workers
        self.tokenizer = build_tokenizer()
        self.packer = Packer(self.tokenizer, architecture)
        self.model = architecture.build(self.tokenizer, SEED)
        self.visual = architecture.visual(self.model)
        self.reader = Reader(self.model, self.packer)

    def tower(self) -> None:
        stage = TowerStage(self.model, self.packer, self._share("tower"))
        self._loop("tower", {"visual": self.visual}).run(stage)

    def language(self) -> None:
        stage = LanguageStage(self.reader, self.packer, self._share("language"), self.steps["language"])
        self._loop("language", {"reader": self.reader}).run(stage)

    def joint(self) -> None:
        modules = {"visual": self.visual, "reader": self.reader}
        restore(self.out / "tower.pt", modules)
        restore(self.out / "language.pt", modules)
        stage = JointStage(self.model, self.reader, self.packer, self._share("joint"), self.steps["joint"])
        self._loop("joint", modules).run(stage)

    def prior(self) -> None:
        """Train the language model alone, without the probes: places it knows by now."""
        restore(self.out / "joint.pt", {"visual": self.visual, "reader": self.reader})
        packer = Packer(self.tokenizer, replace(self.architecture, probed_layer=None))
        reader = Reader(self.model, packer)
        stage = PriorStage(self.model, reader, packer, self._share("prior"))
        self._loop("prior", {"reader": reader}).run(stage)

    def type(self) -> None:
        restore(self.out / "joint.pt", {"visual": self.visual})
        stage = TypeStage(self.model, self.packer, self._share("type"), Windows(self.out / "sheets", SHEET))
        self._loop("type", {"visual": self.visual}).run(stage)

    def web(self) -> None:
        restore(self.out / "type.pt", {"visual": self.visual})
        restore(self.out / "joint.pt", {"reader": self.reader})
        restore(self.out / "prior.pt", {"reader": self.reader})
        packer = Packer(self.tokenizer, replace(self.architecture, probed_layer=None))
        reader = Reader(self.model, packer)
        seen = Windows(self.out / "windows", self.architecture.sizes)
        stage = WebStage(self.model, reader, packer, self._share("web"), seen)
        self._loop("web", {"visual": self.visual, "reader": reader}).run(stage)

    def export(self) -> None:
        """Write what there is: the averages of the joint stage and those after it, or the halves from before."""
        joint = self.out / "joint.pt"
        for path in [joint] if joint.exists() else [self.out / "tower.pt", self.out / "language.pt"]:
            restore(path, {"visual": self.visual, "reader": self.reader})
        if (self.out / "prior.pt").exists():
            restore(self.out / "prior.pt", {"reader": self.reader})
        if (self.out / "web.pt").exists():
            restore(self.out / "web.pt", {"visual": self.visual, "reader": self.reader})
        export(self.model, self.tokenizer, self.architecture, self.out / "checkpoint")

    def _share(self, stage: str) -> Share:
        return Share(BATCH[stage], START[stage], self.rank, self.workers)

    def _loop(self, stage: str, modules: dict[str, torch.nn.Module]) -> Loop:
        if self.workers > 1:
            meeting = (self.out / f"{stage}.workers").absolute()
            dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=self.rank, world_size=self.workers)
        rate, cooldown = self.architecture.rates[stage], self.architecture.cooldowns[stage]
        schedule = Schedule(self.steps[stage], rate, cooldown=cooldown)
        return Loop(modules, self.out / f"{stage}.pt", schedule, AVERAGE.get(stage, 0.0), leader=self.rank == 0)


def main(arguments: list[str] | None = None) -> None:
    """Run one stage, or all of them in child processes of one thread each."""
    parser = argparse.ArgumentParser(prog="python -m vlmopt.training.worlds", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="where the run keeps its state; run again to resume")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each that share a stage")
    parser.add_argument("--stage", choices=STAGES, help="only this stage; the default is all of them")
    parser.add_argument("--rank", type=int, default=0, help="which of the workers this process is; only with --stage")
    parser.add_argument("--architecture", choices=ARCHITECTURES, default="qwen", help="which checkpoint, default qwen")
    for stage in QWEN.steps:
        having = {name: known.steps[stage] for name, known in ARCHITECTURES.items() if stage in known.steps}
        defaults = ", ".join(f"{steps} ({name})" for name, steps in having.items())
        parser.add_argument(f"--{stage}-steps", type=int, help=f"optimizer steps, default {defaults}")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    architecture = ARCHITECTURES[options.architecture]
    given = {stage: getattr(options, f"{stage}_steps") for stage in architecture.steps}
    steps = {stage: default if given[stage] is None else given[stage] for stage, default in architecture.steps.items()}
    if options.stage:
        torch.set_num_threads(1)
        getattr(Trainer(options.out, architecture, steps, options.rank, options.workers), options.stage)()
        return
    common = ["--out", str(options.out), "--architecture", options.architecture, "--workers", str(options.workers)]
    common += [word for stage, count in steps.items() for word in (f"--{stage}-steps", str(count))]
    for stage in (stage for stage in STAGES if stage == "export" or stage in steps):
        if stage == "type":
            make(options.out / "sheets", SHEET, SHEETS, sheets)
        if stage == "web":
            make(options.out / "windows", architecture.sizes, WINDOWS, windows)
        (options.out / f"{stage}.workers").unlink(missing_ok=True)
        ranks = range(1 if stage == "export" else options.workers)
        _together(common, [["--stage", stage, "--rank", str(rank)] for rank in ranks])


def _together(common: list[str], jobs: list[list[str]]) -> None:
    """Run jobs side by side; if one fails, stop the others."""
    environment = {**os.environ, **KEEP_MEMORY}
    running = [subprocess.Popen([sys.executable, "-m", MODULE, *common, *job], env=environment) for job in jobs]
    try:
        failed = [process.wait() for process in running]
    finally:
        for process in running:
            process.terminate()
    if any(failed):
        raise SystemExit(f"a stage failed (exit codes {failed}); run the same command again to resume")


if __name__ == "__main__":
    main()

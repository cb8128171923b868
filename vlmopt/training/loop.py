"""One training loop for all stages: Muon for matrices, AdamW for the rest, resumable, with a progress bar."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import nn
from tqdm import tqdm

from vlmopt.atomic import atomic_write
from vlmopt.focusui.schedule import Schedule

SAVE_EVERY = 120.0  # seconds
LOG_EVERY = 25  # steps
TABLE_RATE = 0.5  # rate of a CLIP tower's embeddings to the others'; at the full rate pixels drown the positions

Counts = dict[str, tuple[float, float]]  # name -> (right, of)
Marked = tuple[torch.Tensor, Counts]  # a loss and what was right


class Loop:
    """Trains `modules` (name -> module) and keeps everything needed to go on in `path`.

    A batch is a function of the step alone, so a resumed run sees what an uninterrupted one would have seen. Workers of
    one process group average their gradients; the `leader` alone writes state and log.
    """

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        path: Path,
        schedule: Schedule,
        average: float = 0.0,
        *,
        leader: bool = True,
    ) -> None:
        self.path, self.schedule, self.leader = path, schedule, leader
        named = {f"{m}.{n}": p for m, module in modules.items() for n, p in module.named_parameters()}
        self.parameters = {name: p for name, p in named.items() if p.requires_grad}
        tables = [p for n, p in self.parameters.items() if "embedding" in n]
        matrices = [p for n, p in self.parameters.items() if p.ndim == 2 and "probe" not in n and "embedding" not in n]
        others = [p for n, p in self.parameters.items() if (p.ndim != 2 or "probe" in n) and "embedding" not in n]
        groups = [{"params": others, "scale": 1.0}, {"params": tables, "scale": TABLE_RATE}]
        self.optimizers = [
            torch.optim.Muon(matrices, lr=schedule.rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(
                [group for group in groups if group["params"]], lr=schedule.rate, betas=(0.9, 0.98), weight_decay=0.0
            ),
        ]
        self.decay, self.step = average, 0
        self.averages = {n: p.detach().clone() for n, p in self.parameters.items()} if average else {}
        if path.exists():
            self._load(torch.load(path, weights_only=True))

    def run(self, work: Callable[[int], Marked]) -> None:
        """Take all steps; `work(step)` gives the loss and counts, name -> (right, of); their ratios are logged."""
        totals: defaultdict[str, float] = defaultdict(float)
        seen: defaultdict[str, float] = defaultdict(float)
        saved = time.monotonic()
        bar = tqdm(
            initial=self.step,
            total=self.schedule.steps,
            desc=self.path.stem,
            mininterval=5.0,
            disable=not self.leader,
        )
        while self.step < self.schedule.steps:
            loss, counts = work(self.step)
            self._update(loss)
            for name, (right, of) in {**counts, "loss": (loss.item(), 1)}.items():
                totals[name] += right
                seen[name] += of
            bar.update()
            if self.step % LOG_EVERY == 0:
                self._log(" ".join(f"{name} {totals[name] / seen[name]:.3f}" for name in sorted(totals) if seen[name]))
                totals.clear()
                seen.clear()
            if time.monotonic() - saved > SAVE_EVERY:
                self.save()
                saved = time.monotonic()
        bar.close()
        self.save()

    def _log(self, line: str) -> None:
        if self.leader:
            with self.path.with_suffix(".log").open("a", encoding="utf-8") as log:
                log.write(f"{time.strftime('%H:%M:%S')} {self.step} {line}\n")

    def _update(self, loss: torch.Tensor) -> None:
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss.item()} at step {self.step}; lower the learning rate")
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
            for group in optimizer.param_groups:
                group["lr"] = self.schedule(self.step) * group.get("scale", 1.0)
        loss.backward()
        if dist.is_initialized():
            self._share_gradients()
        nn.utils.clip_grad_norm_(self.parameters.values(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        self.step += 1
        for name, average in self.averages.items():
            average.lerp_(self.parameters[name].detach(), 1.0 - min(self.decay, self.step / (self.step + 10)))

    def _share_gradients(self) -> None:
        gradients = [cast(torch.Tensor, p.grad) for p in self.parameters.values()]  # every step reaches them all
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient)).div_(dist.get_world_size())

    def save(self) -> None:
        if not self.leader:
            return
        state = {
            "step": self.step,
            "parameters": {name: p.detach() for name, p in self.parameters.items()},
            "averages": self.averages,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        with atomic_write(self.path) as fresh:
            torch.save(state, fresh)

    def _load(self, state: dict[str, Any]) -> None:
        self.step = state["step"]
        _copy(self.parameters, state["parameters"])
        _copy(self.averages, state["averages"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)


def restore(path: Path, modules: Mapping[str, nn.Module]) -> None:
    """Copy what a finished stage trained into `modules`, its average where it kept one."""
    state = torch.load(path, weights_only=True)
    trained = state["averages"] or state["parameters"]
    named = {f"{m}.{n}": p for m, module in modules.items() for n, p in module.named_parameters()}
    _copy({name: p for name, p in named.items() if name in trained}, trained)


@torch.no_grad()
def _copy(targets: Mapping[str, torch.Tensor], sources: Mapping[str, torch.Tensor]) -> None:
    for name in targets:
        targets[name].copy_(sources[name])


def tally(pairs: Iterable[tuple[str, bool]]) -> Counts:
    """Count by name how many were right, of how many."""
    right: Counter[str] = Counter()
    of: Counter[str] = Counter()
    for name, correct in pairs:
        right[name] += correct
        of[name] += 1
    return {name: (right[name], of[name]) for name in of}

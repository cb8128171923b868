"""A training loop that survives a kill: a batch is a function of the step, and the state is written whole or not."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..atomic import atomic_write
from .schedule import Schedule

LOG_EVERY = 25  # steps
CLIP = 1.0  # largest norm of all gradients together

Work = Callable[[int], tuple[Tensor, Mapping[str, float]]]
Group = tuple[float, Mapping[str, nn.Parameter]]  # peak learning rate, parameters by name


class Loop:
    """Run AdamW over groups with rates of their own; gradients are averaged over the processes of an accelerator.

    Args:
        accelerator: `accelerate.Accelerator`. path: of the state; beside it a log is kept.
        groups: of parameters. steps: in all. request: what makes this run what it is; another one is refused.
        save_every: seconds.

    Raises:
        ValueError: the state was left by another run.
    """

    def __init__(
        self,
        accelerator: Any,
        path: Path,
        groups: Sequence[Group],
        steps: int,
        request: Mapping[str, Any],
        save_every: float = 120.0,
    ) -> None:
        self.accelerator, self.path, self.steps, self.request = accelerator, path, steps, dict(request)
        self.save_every, self.step = save_every, 0
        self.schedules = [Schedule(steps, rate, warmup=max(1, min(60, steps // 10))) for rate, _ in groups]
        self.parameters = {name: p for _, named in groups for name, p in named.items()}
        self.optimizer = torch.optim.AdamW(
            [{"params": list(named.values())} for _, named in groups], lr=0.0, betas=(0.9, 0.98), weight_decay=0.0
        )
        if path.exists():
            self._load(torch.load(path, weights_only=True, map_location="cpu"))

    def run(self, work: Work) -> None:
        """Take all steps; `work(step)` returns this process's loss, and figures for the log."""
        leader = self.accelerator.is_main_process
        totals: Counter[str] = Counter()
        seen = 0  # steps in the totals: a run that goes on begins between two lines of the log
        saved = time.monotonic()
        bar = tqdm(initial=self.step, total=self.steps, desc=self.path.stem, unit="step", disable=not leader)
        while self.step < self.steps:
            loss, figures = work(self.step)
            self._update(loss)
            totals.update({"loss": float(loss.detach()), **figures})
            seen += 1
            bar.update()
            if self.step % LOG_EVERY == 0 or self.step == self.steps:
                self._log(" ".join(f"{name} {total / seen:.4f}" for name, total in sorted(totals.items())))
                totals, seen = Counter(), 0
            if time.monotonic() - saved > self.save_every:
                self.save()
                saved = time.monotonic()
        bar.close()
        self.save()
        self.accelerator.wait_for_everyone()

    def _update(self, loss: Tensor) -> None:
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss.item()} at step {self.step}; lower the learning rate")
        for group, schedule in zip(self.optimizer.param_groups, self.schedules, strict=True):
            group["lr"] = schedule(self.step)
        self.optimizer.zero_grad(set_to_none=True)
        self.accelerator.backward(loss)
        self.share_gradients()
        nn.utils.clip_grad_norm_(self.parameters.values(), CLIP)
        self.optimizer.step()
        self.step += 1

    def share_gradients(self) -> None:
        """Give every process the mean gradient; one that had no use for a parameter counts with zero."""
        if self.accelerator.num_processes == 1:
            return
        for p in self.parameters.values():
            p.grad = self.accelerator.reduce(torch.zeros_like(p) if p.grad is None else p.grad, reduction="mean")

    def _log(self, line: str) -> None:
        if self.accelerator.is_main_process:
            with self.path.with_suffix(".log").open("a", encoding="utf-8") as log:
                log.write(f"{time.strftime('%H:%M:%S')} {self.step} {line}\n")

    def save(self) -> None:
        if not self.accelerator.is_main_process:
            return
        state = {
            "request": self.request,
            "step": self.step,
            "parameters": {name: p.detach() for name, p in self.parameters.items()},
            "optimizer": self.optimizer.state_dict(),
        }
        with atomic_write(self.path) as fresh:
            torch.save(state, fresh)

    @torch.no_grad()
    def _load(self, state: Mapping[str, Any]) -> None:
        if other := {k: v for k, v in state["request"].items() if self.request.get(k) != v}:
            here = {name: self.request.get(name) for name in other}
            raise ValueError(f"{self.path} was left by another run ({other}, now {here}); choose another --out")
        self.step = state["step"]
        for name, p in self.parameters.items():
            p.copy_(state["parameters"][name])
        self.optimizer.load_state_dict(state["optimizer"])

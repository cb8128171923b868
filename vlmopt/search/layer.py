"""Measure output errors of one layer's heads: every candidate on the whole map, on a modality's rows, and on pairs.

MMInference (arXiv 2504.16083), algorithm 4, steps "intra" and "cross": all heads at once, one candidate at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..kernels.patterns import DensePattern, Pattern, Prefill, View, ViewPattern
from ..kernels.patterns.boundary import CLASSES, slots_of
from ..kernels.sparse_attention import Launch, run_plan
from ..kernels.sparse_attention.merge import merge
from .candidates import keeps_nothing, twins_of
from .timing import cells, timed

PAIRS = tuple((rows, keys) for rows in CLASSES for keys in CLASSES)
PARTS = ("all", *CLASSES, *("_".join(pair) for pair in PAIRS))
SLACK = 1.1  # of the reference's cost may be spent
ROWS = 2048  # compared at a time

Attention = tuple[Tensor, Tensor]  # output [B, Hq, Sq, D] and log-sum-exp [B, Hq, Sq]


@dataclass(frozen=True, eq=False)
class Measured:
    """Of P parts, C candidates and H heads; errors are infinite where a candidate was not run."""

    errors: Tensor  # fp64 [P, C, H]: sum over the part's rows of |O - O_dense|, over that of |O_dense| of all rows
    cells: Tensor  # fp64 [P, C, H]: pairs of a row and a key that are computed
    seconds: Tensor  # fp64 [C]: to build and to run a candidate for all heads on the whole map; NaN where it was not
    shares: Tensor  # fp64 [2, H]: of the size of the dense output, that of text and of vision rows
    both: bool  # the prompt holds text and vision: there are boundaries


class LayerSearch:
    """Compare candidates with the dense output of one layer.

    Args:
        prefill: of all query heads. backend: what computes the plans.
    """

    def __init__(self, prefill: Prefill, backend: str = "auto") -> None:
        self.prefill, self.backend = prefill, backend
        self.exact: Tensor = self.run(DensePattern().build(prefill))
        self.size = self.total(prefill.real).clamp_min(1e-30)

    @property
    def both(self) -> bool:
        """Whether the prompt holds text and vision; else there are no boundaries."""
        return self.prefill.modality is not None and all(rows.shape[1] for rows in slots_of(self.prefill, "search")[0])

    def measure(self, candidates: Sequence[ViewPattern]) -> Measured:
        """Measure all candidates on the whole map and on its parts; without boundaries the only part is the whole map.

        The first candidate is the reference. A candidate that computes more than 1.1 times its cells in every head is
        not run: nothing reads a cell faster than the reference does, whole blocks in order.
        """
        shape = (len(PARTS), len(candidates), self.prefill.q.shape[1])
        errors, count = torch.zeros(2, *shape, dtype=torch.float64)
        seconds = torch.full(shape[1:2], torch.nan, dtype=torch.float64)
        whole = View(self.prefill)
        limit = SLACK * cells(self.prefill, candidates[0].select(whole))
        twins = {} if self.prefill.frame else twins_of(candidates)
        own = [(c, candidate) for c, candidate in enumerate(candidates) if c not in twins]
        for c, candidate in own:
            errors[0, c], count[0, c], seconds[c] = self.one(candidate, whole, self.prefill.real, limit)
        both = self.both
        if both:
            for number, view, real, rest in self.parts():
                for c, candidate in own:
                    errors[number, c], count[number, c], _ = self.one(candidate, view, real, limit, rest)
        else:
            only = CLASSES[int(self.prefill.row_modality.clamp(0, 1).max())]
            same = [PARTS.index(only), PARTS.index(f"{only}_{only}")]
            errors[same], count[same] = errors[0].clone(), count[0].clone()
        for c, twin in twins.items():
            errors[:, c], count[:, c], seconds[c] = errors[:, twin], count[:, twin], seconds[twin]
        shares = torch.stack([self.total(self.of(kind)) / self.size for kind in range(len(CLASSES))])
        return Measured(errors, count, seconds, shares, both)

    def of(self, kind: int) -> Tensor:
        """Return Bool[B, Sq]: the real rows of a modality."""
        return self.prefill.real & (self.prefill.row_modality.clamp(0, 1) == kind)

    def parts(self) -> Iterator[tuple[int, View, Tensor, Attention | None]]:
        """Yield, per part: its number in PARTS, view, rows Bool[B, Sq], and their dense attention to all other keys."""
        rows, keys = slots_of(self.prefill, "search")
        for i, name in enumerate(CLASSES):
            real = self.of(i)
            yield PARTS.index(name), View(self.prefill, rows=rows[i], consecutive=False), real, None
            views = [View(self.prefill, rows=rows[i], keys=keys[j], consecutive=i == j) for j in range(len(CLASSES))]
            for j, other in enumerate(CLASSES):
                rest = self.run(DensePattern().select(views[1 - j]), return_lse=True)
                yield PARTS.index(f"{name}_{other}"), views[j], real, rest

    def one(
        self, candidate: ViewPattern, view: View, real: Tensor, limit: Tensor, rest: Attention | None = None
    ) -> tuple[Tensor, Tensor, float]:
        """Return errors [H], cells [H] and seconds of a candidate on a part; `rest`: attention to all other keys."""
        if keeps_nothing(candidate) and rest is None:
            return torch.full((), torch.inf), torch.zeros(()), torch.nan
        launches, building = timed(lambda: candidate.select(view), self.prefill.device)
        count = cells(self.prefill, launches)
        if (count > limit).all():
            return torch.full((), torch.inf), count.cpu(), torch.nan
        out, running = timed(lambda: self.attend(launches, rest), self.prefill.device)
        return self.error(out, real), count.cpu(), building + running

    def attend(self, launches: Sequence[Launch], rest: Attention | None) -> Tensor:
        """Return [B, Hq, Sq, D]: attention to the keys of `launches` and to those of `rest`."""
        if rest is None:
            alone: Tensor = self.run(launches)
            return alone
        out, lse = self.run(launches, return_lse=True)
        return merge(out, lse, *rest)[0]

    def run(self, launches: Sequence[Launch], **more: Any) -> Any:
        return run_plan(self.prefill, launches, backend=self.backend, **more)

    def composed(self, groups: Sequence[tuple[Pattern, Tensor]]) -> Tensor:
        """Return fp64 [H]: the errors of heads Long[n] of each group with its pattern; 0 for heads in no group."""
        device, errors = self.prefill.device, torch.zeros_like(self.size)
        given = [(pattern, replace(self.prefill, heads=heads.to(device))) for pattern, heads in groups]
        if given:
            covered = torch.cat([heads for _, heads in groups])
            out = self.attend([launch for pattern, prefill in given for launch in pattern.build(prefill)], None)
            errors[covered] = self.error(out, self.prefill.real)[covered]
        return errors

    def error(self, out: Tensor, real: Tensor) -> Tensor:
        """Return fp64 [H] on the CPU: the sum of |out - exact| over rows Bool[B, Sq], over that of |exact| over all."""
        return self.total(real, out) / self.size

    def total(self, real: Tensor, out: Tensor | None = None) -> Tensor:
        """Return fp64 [H] on the CPU: the sum of |out - exact|, or of |exact|, over rows Bool[B, Sq]."""
        total = torch.zeros(self.exact.shape[1], dtype=torch.float64, device=real.device)
        for some in (slice(start, start + ROWS) for start in range(0, self.exact.shape[2], ROWS)):
            gap = self.exact[:, :, some].float()
            gap = gap if out is None else out[:, :, some].float() - gap
            total += (gap.abs().sum(-1) * real[:, None, some]).sum((0, 2), dtype=torch.float64)
        return total.cpu()

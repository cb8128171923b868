"""Positional trend of attention scores: averaged over pictures while nothing is pruned, then fitted.

Attention Debiasing for Token Pruning in Vision Language Models (arXiv 2508.17807), offline fit: mean score over the
place in the picture, mu * exp(sigma * x). Scores are averaged in bins of the relative place, so that pictures of any
size count alike, each sample scaled to mean 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from vlmopt.pruning import FastV, PyramidDrop, ScoreSelector, Selection, Selector, Signal, SparseVLM, VisualTokens
from vlmopt.pruning.profile import DebiasProfile
from vlmopt.pruning.trend import fit_axes, fit_exponential, grid_place, raster_place

from ..api import optimized
from ..checks import model_facts
from ..policy import Policy
from ..runtime.discover import discover
from .heads import HeadSums

RASTER, FRAMES, SIDE = 64, 8, 16  # bins of the place in the sequence; of frames; of rows and columns
MISSING = "no picture reached the selectors: the prompts hold no visual tokens, or the model cannot be read"


@dataclass
class Sums:
    """Running sums of one host's scores."""

    raster: Tensor = field(default_factory=lambda: torch.zeros(2, RASTER, dtype=torch.float64))  # sum, count
    grid: Tensor = field(default_factory=lambda: torch.zeros(2, FRAMES * SIDE * SIDE, dtype=torch.float64))
    samples: int = 0

    def add(self, tokens: VisualTokens, scores: Tensor) -> None:
        """scores: fp32 [n] of one sample."""
        scores = (scores / scores.mean().clamp_min(1e-30)).double().cpu()
        place = (raster_place(tokens) * RASTER).long().clamp(0, RASTER - 1).cpu()
        bins = torch.tensor([FRAMES, SIDE, SIDE])
        t, y, x = (grid_place(tokens).cpu() * bins).long().T
        for store, index in ((self.raster, place), (self.grid, (t * SIDE + y) * SIDE + x)):
            store[0].index_add_(0, index, scores)
            store[1].index_add_(0, index, torch.ones_like(scores))
        self.samples += 1

    def raster_fit(self) -> tuple[float, float]:
        """(mu, sigma) over the place in the sequence; empty bins take the value of their neighbours."""
        total, count = self.raster
        known = count > 0
        mean = torch.where(known, total / count.clamp_min(1), 0)
        nearest = (torch.arange(RASTER)[:, None] - known.nonzero()[:, 0]).abs().argmin(1)
        return fit_exponential(mean[known.nonzero()[:, 0][nearest]])

    def grid_fit(self) -> tuple[float, ...]:
        """Slopes over t, y and x."""
        total, count = self.grid
        coords = torch.cartesian_prod(*(torch.arange(n) / n for n in (FRAMES, SIDE, SIDE)))
        known = count > 0
        return tuple(fit_axes((total[known] / count[known]).float(), coords[known].float()).tolist())

    def state(self) -> dict[str, Any]:
        return {"raster": self.raster.tolist(), "grid": self.grid.tolist(), "samples": self.samples}

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> Sums:
        raster, grid = (torch.tensor(state[name], dtype=torch.float64) for name in ("raster", "grid"))
        return cls(raster, grid, int(state["samples"]))


@dataclass(frozen=True, kw_only=True)
class Listener(Selector):
    """Stands where hosts of one layer would cut, adds up their scores, and lets every token pass."""

    name = "calibration"
    hosts: tuple[ScoreSelector, ...] = ()
    sums: Mapping[str, Sums] = field(default_factory=dict)

    @property
    def needs(self) -> frozenset[Signal]:
        return frozenset().union(*(host.captures for host in self.hosts))

    def select(self, tokens: VisualTokens) -> Selection:
        patches = tokens.subset((~tokens.structural).nonzero()[:, 0])
        for host in self.hosts:
            self.sums[key(host)].add(patches, host.score(patches).float())
        return Selection(torch.arange(len(tokens), device=tokens.ordinal.device))

    def pick(self, tokens: VisualTokens, k: int) -> Selection:
        raise NotImplementedError("a listener chooses nothing")


def key(host: ScoreSelector) -> str:
    return f"{host.name}:{host.layer}"


def default_hosts(depth: int) -> list[ScoreSelector]:
    """The hosts with a positional trend at their usual first layers, in a model of `depth` decoder layers."""
    return [
        FastV(keep_ratio=0.5, layer=min(2, depth - 1)),
        PyramidDrop(keep_ratio=0.5, layers=(max(depth // 4, 1),)),
        SparseVLM(keep_ratio=0.5, layers=(min(3, depth - 1),)),
    ]


class Collector:
    """Adds up host scores, and what heads look at, over pictures; `state()` can be written to a file to go on later.

    Args:
        model: a loaded vision-language model. hosts: methods whose scores have a trend; only their first stage counts.
        state: of an earlier collector. heads: sums of what heads look at, filled in the same passes.

    Raises:
        ValueError, TypeError: a host that cannot work on this model, or whose scores have no trend; nothing to measure.
    """

    def __init__(
        self,
        model: nn.Module,
        hosts: Sequence[ScoreSelector],
        state: Mapping[str, Any] | None = None,
        heads: HeadSums | None = None,
    ) -> None:
        self.model, self.heads = model, heads
        self.hosts = [cast("ScoreSelector", host.stages[0]) for host in hosts]
        for host in self.hosts:
            if not isinstance(host, ScoreSelector) or not host.trend:
                raise ValueError(f"{host.name}: its scores are no attention inside the LLM, so there is no trend")
        names = [key(host) for host in self.hosts]
        if len(set(names)) < len(names) or not (names or heads):
            raise ValueError(f"give one or more hosts, each once; got {', '.join(names) or 'none'}")
        stored = state["hosts"] if state else {}
        self.sums = {name: Sums.of(stored[name]) if name in stored else Sums() for name in names}
        if heads is not None and state:
            heads.load(state["heads"])
        layers = sorted({host.layer for host in self.hosts})
        self.policy = Policy(
            prune=[
                Listener(
                    keep_ratio=0.999,  # below 1, so that it counts as active; nothing is dropped
                    layer=layer,
                    hosts=tuple(host for host in self.hosts if host.layer == layer),
                    sums=self.sums,
                )
                for layer in layers
            ],
            attention=[] if heads is None else heads.corrections,
        )
        with optimized(model, self.policy):
            pass

    @property
    def done(self) -> int:
        """Samples seen so far."""
        return min(part.samples for part in (*self.sums.values(), self.heads) if part is not None)

    @torch.inference_mode()
    def add(self, inputs: Mapping[str, Any]) -> None:
        """One prompt with pictures, batch 1, through the unpruned model."""
        device = next(self.model.parameters()).device
        moved = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in inputs.items()}
        with optimized(self.model, self.policy):
            self.model(**moved, use_cache=False)
        if self.heads is not None:
            self.heads.finish()

    def state(self) -> dict[str, Any]:
        """JSON-ready."""
        heads = {} if self.heads is None else {"heads": self.heads.state()}
        return {"hosts": {name: sums.state() for name, sums in self.sums.items()}, **heads}

    def profiles(self, name: str) -> list[DebiasProfile]:
        """What was measured: per host the raster trend, and that along frames, rows and columns.

        Args:
            name: what the model is called in the profile.
        """
        if not self.done:
            raise ValueError(MISSING)
        facts = model_facts(self.model, discover(self.model)) | {"name_or_path": name}
        out = []
        for host in self.hosts:
            sums = self.sums[key(host)]
            mu, sigma = sums.raster_fit()
            common: dict[str, Any] = {
                "model": facts,
                "host": host.name,
                "layer": host.layer,
                "samples": sums.samples,
                "queries": "those of the host",
                "head_reduction": "that of the host",
            }
            out.append(DebiasProfile(sigma=(sigma,), mu=mu, axes="raster", **common))
            out.append(DebiasProfile(sigma=sums.grid_fit(), axes="thw", **common))
        return out

"""Measure the positional trend of attention scores: average over images while nothing is pruned, then fit.

Attention Debiasing for Token Pruning in Vision Language Models (arXiv 2508.17807), offline fit: mean score over the
place in the image, mu * exp(sigma * x). Scores are averaged in bins of the relative place, so that images of any
size count alike, each sample scaled to mean 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from vlmopt.pruning import FastV, PyramidDrop, ScoreSelector, Selection, Selector, Signal, SparseVLM, VisualTokens
from vlmopt.pruning.profile import DebiasProfile
from vlmopt.pruning.trend import fit_axes, fit_exponential, grid_place, raster_place

from ..api import optimized
from ..checks import model_facts
from ..offload import device_of
from ..policy import Policy
from ..runtime.structure import structure_of
from .heads import HeadSums

RASTER, FRAMES, SIDE = 64, 8, 16  # bins over places in the sequence, over frames, over rows and columns
GROUPS = 23  # of samples, for standard errors; a prime, so that kinds of images that take turns reach all of them
MISSING = "no image reached the selectors: the prompts hold no visual tokens, or the model cannot be read"


def _blank(bins: int) -> Tensor:
    return torch.zeros(GROUPS, 2, bins, dtype=torch.float64)


@dataclass
class Sums:
    """Running sums of one host's scores, by group of samples, [GROUPS, 2, bins]: sum and count."""

    raster: Tensor = field(default_factory=lambda: _blank(RASTER))
    grid: Tensor = field(default_factory=lambda: _blank(FRAMES * SIDE * SIDE))
    samples: int = 0

    def add(self, tokens: VisualTokens, scores: Tensor) -> None:
        """Add the scores fp32 [n] of one sample."""
        scores = (scores / scores.mean().clamp_min(1e-30)).double().cpu()
        place = (raster_place(tokens) * RASTER).long().clamp(0, RASTER - 1).cpu()
        bins = torch.tensor([FRAMES, SIDE, SIDE])
        t, y, x = (grid_place(tokens).cpu() * bins).long().T
        for store, index in ((self.raster, place), (self.grid, (t * SIDE + y) * SIDE + x)):
            own = store[self.samples % GROUPS]
            own[0].index_add_(0, index, scores)
            own[1].index_add_(0, index, torch.ones_like(scores))
        self.samples += 1

    def raster_fit(self) -> tuple[float, float]:
        """Fit (mu, sigma) over the place in the sequence; empty bins take the value of their neighbours."""
        return _raster_fit(self.raster.sum(0))

    def grid_fit(self) -> tuple[float, ...]:
        """Fit the slopes over t, y and x."""
        return _grid_fit(self.grid.sum(0))

    def raster_error(self) -> tuple[float, ...]:
        """Return the standard error of sigma, over samples; () with fewer than two."""
        return _jackknife(self.raster, lambda total: _raster_fit(total)[1:])

    def grid_error(self) -> tuple[float, ...]:
        """Return the standard errors of the slopes over t, y and x, over samples; () with fewer than two."""
        return _jackknife(self.grid, _grid_fit)

    def state(self) -> dict[str, Any]:
        return {"raster": self.raster.tolist(), "grid": self.grid.tolist(), "samples": self.samples}

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> Sums:
        """Make the sums from a saved state.

        Raises:
            ValueError: sums of an earlier version, without groups.
        """
        raster, grid = (torch.tensor(state[name], dtype=torch.float64) for name in ("raster", "grid"))
        if raster.ndim != 3:
            raise ValueError("the interrupted calibration was begun by an earlier version; delete its .part file")
        return cls(raster, grid, int(state["samples"]))


def _raster_fit(total: Tensor) -> tuple[float, float]:
    known = total[1] > 0
    mean = torch.where(known, total[0] / total[1].clamp_min(1), 0)
    nearest = (torch.arange(RASTER)[:, None] - known.nonzero()[:, 0]).abs().argmin(1)
    return fit_exponential(mean[known.nonzero()[:, 0][nearest]])


def _grid_fit(total: Tensor) -> tuple[float, ...]:
    coords = torch.cartesian_prod(*(torch.arange(n) / n for n in (FRAMES, SIDE, SIDE)))
    known = total[1] > 0
    return tuple(fit_axes((total[0][known] / total[1][known]).float(), coords[known].float()).tolist())


def _jackknife(groups: Tensor, fit: Callable[[Tensor], tuple[float, ...]]) -> tuple[float, ...]:
    """Return the standard errors of what `fit` finds, by leaving out one group [2, bins] of samples at a time.

    The tokens of a sample stay together, so a big image is one observation and not a thousand (Tukey, "Bias and
    confidence in not-quite large samples", 1958).
    """
    held = [group for group in groups if group[1].any()]
    if len(held) < 2:
        return ()
    whole = groups.sum(0)
    found = torch.tensor([fit(whole - group) for group in held], dtype=torch.float64)
    return tuple(((len(held) - 1) * found.var(0, correction=0)).sqrt().tolist())


@dataclass(frozen=True, kw_only=True)
class Listener(Selector):
    """Stand where hosts of one layer would cut, add up their scores, and let every token pass."""

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
    """Name a host in a profile: its method and its layer, as "fastv:2"."""
    return f"{host.name}:{host.layer}"


def default_hosts(depth: int) -> list[ScoreSelector]:
    """Return the hosts with a positional trend at their usual first layers, in a model of `depth` decoder layers."""
    return [
        FastV(keep_ratio=0.5, layer=min(2, depth - 1)),
        PyramidDrop(keep_ratio=0.5, layers=(max(depth // 4, 1),)),
        SparseVLM(keep_ratio=0.5, layers=(min(3, depth - 1),)),
    ]


class Collector:
    """Add up host scores, and what heads look at, over images; `state()` can be written to a file to go on later.

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
        self.hosts: list[ScoreSelector] = []
        for host in hosts:
            first = host.stages[0]
            if not isinstance(first, ScoreSelector) or not first.trend:
                raise ValueError(f"{first.name}: its scores are not attention inside the LLM, so there is no trend")
            self.hosts.append(first)
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
        """Run one prompt with images, batch 1, through the unpruned model."""
        device = device_of(self.model)
        moved = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in inputs.items()}
        with optimized(self.model, self.policy):
            self.model(**moved, use_cache=False)
        if self.heads is not None:
            self.heads.finish()

    def state(self) -> dict[str, Any]:
        """Return the state, JSON-ready."""
        heads = {} if self.heads is None else {"heads": self.heads.state()}
        return {"hosts": {name: sums.state() for name, sums in self.sums.items()}, **heads}

    def profiles(self, name: str) -> list[DebiasProfile]:
        """Return what was measured: per host the raster trend, and the trend along frames, rows and columns.

        Args:
            name: what the model is called in the profile.
        """
        if not self.done:
            raise ValueError(MISSING)
        facts = model_facts(self.model, structure_of(self.model)) | {"name_or_path": name}
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
            out.append(DebiasProfile(sigma=(sigma,), error=sums.raster_error(), mu=mu, axes="raster", **common))
            out.append(DebiasProfile(sigma=sums.grid_fit(), error=sums.grid_error(), axes="thw", **common))
        return out

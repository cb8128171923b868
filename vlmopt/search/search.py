"""Search over layers and prompts: what was measured so far, and the patterns that come out of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..checks import model_facts
from ..choices import MATCHES
from ..head_patterns import HeadPatterns
from ..kernels.patterns import ViewPattern
from ..layer_reuse import LayerReuse
from ..runtime.structure import structure_of
from .capture import Shown, watch
from .choice import Best, Chosen, best_of_each, composed, decide
from .layer import LayerSearch, Measured
from .reuse import RATIO, ReuseSearch

Value = TypeVar("Value")


@dataclass
class Sums:
    """What was measured of one layer over all prompts; shapes as in `Measured`."""

    errors: Tensor
    cells: Tensor
    seconds: Tensor
    shares: Tensor
    both: int = 0  # prompts with boundaries
    prompts: int = 0
    reuse: Tensor | None = None  # fp64 [layer]: errors with the choice of every layer before; NaN: not measured
    pairs: Tensor | None = None  # fp64 [H]: errors of the patterns that the second pass tries
    compared: int = 0  # prompts of the second pass

    @classmethod
    def start(cls, found: Measured) -> Sums:
        errors, cells, seconds, shares = map(torch.zeros_like, (found.errors, found.cells, found.seconds, found.shares))
        return cls(errors, cells, seconds, shares)

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> Sums:
        """Make the sums from what `state` returned."""
        values: dict[str, Any] = {
            k: torch.tensor(v, dtype=torch.float64) if isinstance(v, list) else v for k, v in state.items()
        }
        return cls(**values)

    def state(self) -> dict[str, Any]:
        """Return the state, JSON-ready."""
        return {k: v.tolist() if isinstance(v, Tensor) else v for k, v in asdict(self).items()}

    def add(self, found: Measured, reuse: Tensor) -> None:
        self.reuse = reuse if self.reuse is None else self.reuse + reuse
        self.errors += found.errors
        self.cells += found.cells
        self.seconds += found.seconds
        self.shares += found.shares
        self.both += found.both
        self.prompts += 1

    def compare(self, errors: Tensor) -> None:
        self.pairs = errors if self.pairs is None else self.pairs + errors
        self.compared += 1


class PatternSearch:
    """Find the pattern with the least output error for every head, among those that cost about the same.

    MMInference (arXiv 2504.16083), algorithm 4. Prompts are shown in two passes: the first measures all candidates, the
    second what is put together from the best for pairs of modalities. `state()` can be written to a file after any
    layer and given back to go on; what it holds is not measured again.

    Args:
        model: a loaded vision-language model. candidates: the first one is the reference.
        match: "time": a cell costs what computing it took on this machine; "flops": every cell costs the same.
        dense_layers: first layers that stay dense. backend: what computes the plans.

    Raises:
        ValueError: unknown `match`, no layer left to search.
    """

    def __init__(
        self, model: nn.Module, candidates: Sequence[ViewPattern], *, match: str = "time", dense_layers: int = 2,
        backend: str = "auto", state: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        if match not in MATCHES:
            raise ValueError(f"match must be one of {', '.join(MATCHES)}, got {match!r}")
        structure = structure_of(model)
        self.model, self.facts, self.depth = model, model_facts(model, structure), len(structure.layers)
        if not 0 <= dense_layers < self.depth:
            raise ValueError(f"dense_layers must be 0 to {self.depth - 1} for {self.depth} layers, got {dense_layers}")
        self.candidates, self.match, self.backend = list(candidates), match, backend
        self.dense_layers = dense_layers
        self.sums = {int(layer): Sums.of(own) for layer, own in (state or {}).items()}

    @property
    def searched(self) -> int:
        """Layers that a pass shows at most."""
        return self.depth - self.dense_layers

    @property
    def boundaries(self) -> bool:
        """Whether a prompt held text and vision, so that there is something to see in a second pass."""
        return any(sums.both for sums in self.sums.values())

    def measure(self, number: int, inputs: Mapping[str, Any], done: Callable[[], None]) -> None:
        """Run the first pass of prompt `number`, which counts from 0; call `done` after every layer.

        Raises:
            ValueError: no layer can be searched; the message says why.
        """
        reading = ReuseSearch()

        def show(shown: Shown) -> None:
            sums, reuse = self.sums.get(shown.layer), reading.measure(shown.layer, shown.prefill)
            if sums is None or sums.prompts <= number:
                found = LayerSearch(shown.prefill, self.backend).measure(self.candidates)
                self.sums.setdefault(shown.layer, Sums.start(found)).add(found, reuse)
            done()

        reasons = watch(self.model, inputs, show, self.dense_layers)
        if not self.sums:
            raise ValueError(f"no layer of {type(self.model).__name__} can be searched: {'; '.join(reasons)}")

    def compare(self, number: int, inputs: Mapping[str, Any], done: Callable[[], None]) -> None:
        """Run the second pass of prompt `number`, after the first pass of all prompts."""

        def show(shown: Shown) -> None:
            sums = self.sums[shown.layer]
            if sums.compared <= number:
                search = LayerSearch(shown.prefill, self.backend)
                sums.compare(search.composed(composed(self.bests(shown.layer)[2], self.candidates)))
            done()

        watch(self.model, inputs, show, self.dense_layers)

    def state(self) -> dict[str, Any]:
        """Return the state, JSON-ready."""
        return {str(layer): sums.state() for layer, sums in self.sums.items()}

    def rates(self) -> Tensor:
        """Return fp64 [C]: the cost of a cell of each candidate, relative to the reference; the median over layers."""
        if self.match == "flops":
            return torch.ones(len(self.candidates), dtype=torch.float64)
        seconds = torch.stack([sums.seconds / sums.cells[0].sum(-1) for sums in self.sums.values()])
        return (seconds / seconds[:, :1]).nanmedian(0).values.nan_to_num(1.0)  # those of whole blocks cost alike

    def bests(self, layer: int) -> list[Best]:
        """Return the best of a layer: one pattern for all rows, one per modality, one per pair of modalities."""
        sums = self.sums[layer]
        costs = sums.cells * self.rates()[:, None]
        return best_of_each(*(x / sums.prompts for x in (sums.errors, costs, sums.shares)))

    def chosen(self, layer: int) -> list[Chosen]:
        """Return the pattern of every head of a searched layer."""
        sums, bests = self.sums[layer], self.bests(layer)
        if sums.pairs is not None:
            bests[2] = replace(bests[2], error=bests[2].error.where(bests[2].error.isinf(), sums.pairs / sums.compared))
        known = 3 if sums.pairs is not None else 2 if sums.both else 1
        return decide(bests[:known], self.candidates, sums.cells[0, 0] / sums.prompts)

    def result(self, name: str, calibration: Mapping[str, Any]) -> HeadPatterns:
        """Return what was found.

        Args:
            name: what the model is called. calibration: facts about the prompts, for people.
        """
        found = {layer: self.chosen(layer) for layer in self.sums}
        every = [head for heads in found.values() for head in heads]
        patterns = tuple(dict.fromkeys(head.pattern for head in every))
        ratios = [[head.ratio for head in every if head.pattern == p] for p in patterns]
        model = self.facts | {"name_or_path": name}
        return HeadPatterns(
            model=model,
            patterns=patterns,
            layers=self.by_layer(
                {n: tuple(patterns.index(head.pattern) for head in heads) for n, heads in found.items()}
            ),
            errors=self.by_layer({n: tuple(round(head.error, 6) for head in heads) for n, heads in found.items()}),
            time_ratios=tuple(round(sum(those) / len(those), 4) for those in ratios),
            calibration={"objective": "rel_l1_output", "match": self.match, **calibration},
            reuse=self.reuse(model),
        )

    def reuse(self, model: Mapping[str, Any]) -> LayerReuse:
        """Return how wrong each layer becomes with the choice of an earlier one."""
        errors: list[tuple[float | None, ...]] = []
        for layer in range(self.depth):
            sums = self.sums.get(layer)
            own = [] if sums is None or sums.reuse is None else (sums.reuse / sums.prompts).tolist()
            errors.append(tuple(None if math.isnan(error) else round(error, 6) for error in own))
        samples = max(sums.prompts for sums in self.sums.values())
        return LayerReuse(model=model, samples=samples, keep_ratio=RATIO, errors=tuple(errors))

    def by_layer(self, found: Mapping[int, Value]) -> tuple[Value | None, ...]:
        """Return the value of each layer; None for those that stay dense."""
        return tuple(found.get(layer) for layer in range(self.depth))

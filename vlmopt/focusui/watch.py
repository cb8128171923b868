"""The selector of both stages: it reads what any selector reads, and applies PosPad with a marker that learns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vlmopt.checks import check
from vlmopt.families import family_of
from vlmopt.policy import Policy
from vlmopt.pruning import (
    Pixels,
    PixelScale,
    Scorer,
    Selection,
    Selector,
    Signal,
    TextEmbeds,
    VisualEmbeds,
    VisualTokens,
)
from vlmopt.pruning import labels as fused
from vlmopt.pruning.base import top
from vlmopt.pruning.budget import kept_tokens
from vlmopt.pruning.ui_graph import graph_of
from vlmopt.runtime.session import install, remove
from vlmopt.scorers import Trained

HERE = "in training"  # the source of a marker that is in no file


class Stop(Exception):
    """Raised to end a forward pass when every sample has been seen."""


@dataclass(frozen=True)
class Seen:
    """One example as its selector sees it, without gradients."""

    visual: Tensor  # [n, d]
    text: Tensor  # [R, d], without the answer
    label: Tensor  # fp32 [n]


@dataclass
class Batch:
    """What is known of a batch beforehand, and what came of it."""

    boxes: Sequence[Tensor]  # [k, 4] per example, in fractions
    answers: Sequence[int]  # tokens of each answer
    shares: Sequence[tuple[float, int]] | None  # kept share and seed of dropout of each; None: the pass only looks
    seen: list[Seen] = field(default_factory=list)
    scores: list[Tensor] = field(default_factory=list)  # fp32 [n] with gradients


@dataclass(frozen=True, kw_only=True)
class Watch(Selector):
    """Scores every example and keeps its share, one marker per dropped run."""

    name = "focus_ui_training"

    scorer: Scorer = field(compare=False)
    graph: bool = True  # whether pixels are known
    now: list[Batch] = field(default_factory=list, compare=False)  # the batch of the running pass

    @property
    def needs(self) -> frozenset[Signal]:
        graph = {Pixels(repeated=False), PixelScale()} if self.graph else set()
        return frozenset({VisualEmbeds(), TextEmbeds(), *graph})

    def pick(self, tokens: VisualTokens, k: int) -> Selection:
        raise NotImplementedError("an example is looked at as a whole")

    def select(self, tokens: VisualTokens) -> Selection:
        batch = self.now[-1]
        number = len(batch.seen)
        text = tokens.signals[TextEmbeds()]
        one = Seen(
            tokens.signals[VisualEmbeds()].detach(),
            text[: len(text) - batch.answers[number]].detach(),
            label_of(tokens, batch.boxes[number], self.graph),
        )
        batch.seen.append(one)
        if batch.shares is None:
            if len(batch.seen) == len(batch.boxes):
                raise Stop
            return Selection(torch.arange(len(tokens), device=one.visual.device))
        ratio, seed = batch.shares[number]
        scores = scored(self.scorer, one, seed)
        batch.scores.append(scores)
        k = kept_tokens(len(tokens), ratio, None)
        return Selection(top(scores.detach(), k), scores.detach())


def scored(scorer: Scorer, one: Seen, draw: int) -> Tensor:
    """Return the scores, fp32 [n], with the dropout that `draw` decides.

    So it does not matter which process computes them, and when.
    """
    torch.manual_seed(draw)
    scores: Tensor = scorer(one.visual, one.text)
    return scores


def label_of(tokens: VisualTokens, boxes: Tensor, graph: bool) -> Tensor:
    """Return the fused label, fp32 [n], of one image; box overlap alone where pixels are not known.

    Raises:
        ValueError: not one image on one grid.
    """
    grid = tokens.grids[0] if len(tokens.grids) == 1 else None
    if grid is None or grid[0] != 1 or grid[1] * grid[2] != len(tokens):
        raise ValueError(
            f"an image must become one grid of visual tokens to know which of them a box covers, got the grids "
            f"{list(tokens.grids)} for {len(tokens)} tokens; use a model, or image sizes, without tiles"
        )
    device = tokens.coords.device
    weights = graph_of(tokens) if graph else torch.zeros(len(tokens), device=device)
    return fused(boxes.to(device), weights, grid[1], grid[2], 0.8 if graph else 1.0).to(device)


@contextmanager
def watched(model: Any, scorer: Scorer, marker: Tensor | None) -> Iterator[Watch]:
    """Run a model with a `Watch` before its first layer; it drops nothing without a marker."""
    family = family_of(model.config)
    graph = family.knows_cells and bool(family.image_std)
    more: dict[str, Any] = {} if marker is None else {"positions": "pospad", "marker": "trained", "marker_from": HERE}
    watch = Watch(keep_ratio=0.999, scorer=scorer, graph=graph, **more)
    structure, policy = check(model, Policy.of([watch]))
    session = install(policy, structure, Trained({HERE: scorer}, {} if marker is None else {HERE: marker}))
    try:
        yield watch
    finally:
        remove(session)


def look(model: Any, watch: Watch, inputs: dict[str, Any], boxes: Sequence[Tensor]) -> list[Seen]:
    """Return what the scorer would read of every prompt; the LLM does not run."""
    batch = Batch(boxes, [0] * len(boxes), None)
    watch.now[:] = [batch]
    try:
        with torch.no_grad():
            model(**inputs, use_cache=False)
    except Stop:
        return batch.seen
    raise ValueError(f"{len(batch.seen)} of {len(boxes)} prompts reached the model's first layer with visual tokens")

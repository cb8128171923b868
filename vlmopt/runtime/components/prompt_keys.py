"""What the keys of a layer are when the prompt is over: real, protected, patches of an image, seen by which rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from vlmopt.pruning import TEXT

from ...kv import Eviction, Probe, neighbours
from ..call import PromptStep, Step
from ..captures.read_rows import read_last, reading
from ..context import Store, stage_of
from ..points import AttentionCall
from .marks import Marks
from .pruning.record import Overwritten

MOST_ROWS = 512  # of the text behind the last image that are read
GRID = ("frame", "row", "column")  # tables of marks: where a patch lies in its image, -1 where a place is no patch


@dataclass(frozen=True, eq=False)
class Prompt:
    """The sequence up to the end of the prompt, over logical indices [B, end]."""

    real: Tensor  # Bool
    number: Tensor  # Long: running number of the real token
    image: Tensor  # Bool
    protected: Tensor  # Bool
    patch: tuple[Tensor, ...]  # Long: image, frame, row and column

    @property
    def end(self) -> int:
        return self.real.shape[1]


@dataclass(frozen=True, eq=False)
class Keys:
    """The prompt's keys in one layer. A table with one head stands for all of them."""

    places: Tensor  # Long[B, 1|Hk, n]: logical, what is not real points anywhere
    real: Tensor  # Bool[B, 1|Hk, n]: neither padding nor a filler
    protected: Tensor  # Bool[B, 1|Hk, n]
    competing: list[int]  # per sample: keys that compete, those that were evicted in an earlier turn among them
    held: list[int]  # per sample: keys of a head that are protected
    stored: list[int]  # per sample: keys of a head that are real

    @property
    def here(self) -> list[float]:
        """Share, per sample, of the competing keys that no earlier turn has evicted."""
        each = zip(self.competing, self.stored, self.held, strict=True)
        return [(stored - held) / competing if competing else 1.0 for competing, stored, held in each]


def note(step: PromptStep, marks: Marks) -> None:
    """Write down of a chunk of the prompt where its patches lie, and which places are padding."""
    coords = torch.full((step.batch, step.q, 3), -1, device=step.device)
    if step.context is not None:
        for span in step.context.spans:
            coords[span.batch_row, span.index] = span.coords.to(coords)
        for part in step.context.parts:
            coords[part.whole.batch_row, part.index] = part.whole.coords[part.inside].to(coords)
    for name, axis in zip(GRID, coords.unbind(-1), strict=True):
        marks.append(name, None, axis, step.past)
    mask = step.arguments.attention_mask2d
    if mask is not None and mask.shape == (step.batch, step.past + step.q):  # speaks of generated places too
        marks.tables["padding", None] = ~mask.bool().to(step.device)
    else:
        marks.append("padding", None, torch.zeros(step.batch, step.q, dtype=torch.bool, device=step.device), step.past)


def note_markers(step: Step, marks: Marks) -> None:
    """Write down where PosPad has put its markers in this chunk."""
    found = step.slot(Overwritten).marker
    blank = torch.zeros(step.batch, step.q, dtype=torch.bool, device=step.device)
    marks.append("marker", None, blank if found is None else found.to(step.device), step.past)


def read_prompt(step: Step, method: Eviction) -> Prompt:
    """Read what is known of the sequence so far."""
    marks, end = step.slot(Marks), step.past + step.q

    def table(name: str, filler: Any = False) -> Tensor:
        found = marks.tables.get((name, None))
        if found is None:
            return torch.full((step.batch, end), filler, device=step.device)
        found = found.to(step.device)[:, :end]
        return pad(found, (0, end - found.shape[1]), value=filler)

    real, image, marker = ~table("padding"), table("image"), table("marker")
    fresh = step.slot(Overwritten).marker
    if fresh is not None:
        marker = marker | pad(fresh.to(step.device), (step.past, 0))[:, :end]
    number = real.long().cumsum(1) - 1
    protected = (number < method.first) | (number >= real.sum(1, keepdim=True) - method.recent) | marker
    if method.protect == "text":
        protected = protected | ~image
    return Prompt(real, number, image, protected & real, (table("span", -1), *(table(name, -1) for name in GRID)))


def read_keys(step: Step, store: Store, heads: Tensor | None, prompt: Prompt) -> Keys:
    """Read what the keys are that a layer holds of the prompt.

    Args:
        heads: Long[B, Hk, m], logical indices of its first m slots where heads have kept keys of their own.
    """
    slots, valid = slots_of(step, store, prompt.end)
    places = slots[:, None]
    if heads is not None:
        later = places[..., heads.shape[2] :].expand(-1, heads.shape[1], -1)
        places = torch.cat([heads.to(places.device), later], 2)
    real = at(prompt.real, places) if valid is None else at(prompt.real, places) & valid[:, None]
    protected = at(prompt.protected, places) & real
    whole, exists = slots_of(step, stage_of(store), prompt.end)
    competes = at(prompt.real & ~prompt.protected, whole[:, None])[:, 0]
    competes = competes if exists is None else competes & exists
    counts = torch.stack([competes.sum(1), protected[:, 0].sum(1), real[:, 0].sum(1)]).tolist()
    return Keys(places, real, protected, *counts)


def slots_of(step: Step, store: Store, end: int) -> tuple[Tensor, Tensor | None]:
    """Return logical index Long[B, n] and validity of a layer's slots."""
    columns, valid = step.columns(store)
    if columns is None:
        return torch.arange(end, device=step.device).expand(step.batch, -1), None
    return columns.to(step.device), None if valid is None else valid.to(step.device)


def at(table: Tensor, places: Tensor) -> Tensor:
    """Gather values [B, end] at places Long[B, H, n]."""
    return table[:, None].expand(-1, places.shape[1], -1).gather(2, places)


def around(prompt: Prompt, keys: Keys) -> Tensor | None:
    """Find the neighbours of every key on its grid, Long[B, 1|Hk, n, 9]; None where no grid is known."""
    if not bool((prompt.patch[1] >= 0).any()):
        return None
    return neighbours(*(at(axis, keys.places).masked_fill(~keys.real, -1) for axis in prompt.patch))


def read_targets(step: PromptStep, stage: int, rows: int | str, prompt: Prompt, at_call: AttentionCall) -> Probe:
    """Read the attention of the prompt's last rows, or of the text behind the last image, to the prompt's keys."""
    wanted = prompt.real[:, step.past :]
    if rows == TEXT:
        place = torch.arange(prompt.end, device=wanted.device)
        image = place.masked_fill(~prompt.image, -1).amax(1, keepdim=True)
        final = place.masked_fill(~prompt.real, -1).amax(1, keepdim=True)
        place = place[step.past :]
        wanted = wanted & (place > torch.minimum(image, final - 1))  # a prompt that ends in an image has its last row
        rows = min(int((wanted.shape[1] - wanted.long().argmax(1)).max()), MOST_ROWS)
    read = read_last(reading(step, stage, int(rows)), at_call)
    counts = read.known & wanted.to(read.places.device).gather(1, read.places)
    return Probe(read.weights, counts, read.allowed.expand(len(counts), -1, -1, -1))

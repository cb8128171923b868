"""What corrections remember of the tokens that one cache holds: flags over logical indices, gains, the text stream.

Made for every new cache (or uncached forward), kept on the cache, copied with it: nothing outlives what it describes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from vlmopt.attention_fix import RowCorrection

from ..call import Call, PromptStep, Session, Step
from ..component import Component
from ..context import Store
from ..followed import PerSample, follow
from ..padding import real

ATTRIBUTE = "_vlmopt_marks"
FOREIGN = "the cache was filled before the model was optimized, or optimized like this; start the sequence anew"
ROOM = 256  # slots by which the physical copy of a table grows, so that decoding pads rarely

Name = tuple[str, int | None]  # what is flagged, and in which layer where that matters


@dataclass(eq=False)
class Marks(PerSample):
    """State of a step and of its call; blank where nothing is corrected.

    Tables are [B, n] over the first n logical indices; what lies behind them is unflagged.
    """

    batch: int = 0
    serial: str = ""  # of the session that made them
    length: int = 0  # logical indices of prompts seen so far
    has_image: bool = False
    images: int = 0  # running number of the next image
    first: int = 0  # running number of the first image of this call
    seen: Tensor = field(default_factory=lambda: torch.empty(0))  # Bool[B]: the sample has shown an image
    tables: dict[Name, Tensor] = field(default_factory=dict)
    gains: dict[int, Tensor] = field(default_factory=dict)  # layer -> fp32 [B, H]
    stream: Any = None  # the image-free twin of the sequence, where a method wants one
    spread: dict[Any, tuple[Tensor, Tensor]] = field(default_factory=dict)  # physical copies and what they came from
    derived: dict[Any, tuple[list[Tensor], Tensor | None]] = field(default_factory=dict)  # the same of `sets`

    def open(self, step: PromptStep) -> None:
        """Record where the images and the system prompt of a prompt chunk are."""
        self.cut(step.past)
        device, context = step.device, step.context
        if not len(self.seen):
            self.seen = torch.zeros(self.batch, dtype=torch.bool, device=device)
        valid = real(step)
        before = self.seen[:, None]
        if context is not None:
            visual = context.visual.to(device) & valid
            started = visual.long().cumsum(1) > 0
            self.append("image", None, visual, step.past)
            if step.past == (step.call.progress.began or 0) or not context.parts:
                self.first = self.images
            number = context.span.to(device, copy=True)
            for part in context.parts:
                number[part.whole.batch_row, part.index.to(device)] = part.whole.item
            number = (number + self.first).masked_fill(~visual, -1)
            self.append("span", None, number, step.past)
            self.append("system", None, valid & ~started & ~before, step.past)
            self.images = max(self.images, int(number.max()) + 1)
            self.seen = self.seen | visual.any(1)
            self.has_image = self.has_image or bool(visual.any())
        else:
            self.append("system", None, valid & ~before, step.past)
        self.length = step.past + step.q

    def append(self, name: str, layer: int | None, values: Tensor, past: int) -> None:
        """Append values [B, q] of the logical indices from `past` on."""
        filler = filler_of(values)
        table = self.tables.get((name, layer))
        table = values.new_full((values.shape[0], 0), filler) if table is None else table.to(values.device)
        table = pad(table[:, :past], (0, max(past - table.shape[1], 0)), value=filler)
        self.tables[name, layer] = torch.cat([table, values], 1)

    def cut(self, length: int) -> None:
        """Forget logical indices from `length` on: the cache was cropped."""
        if length < self.length:
            self.tables = {name: table[:, :length] for name, table in self.tables.items()}
            self.length = length

    def forget(self, store: Store) -> None:
        """Drop what was derived for slots that have changed."""
        self.spread = {key: value for key, value in self.spread.items() if key[2] != store}
        self.derived = {key: value for key, value in self.derived.items() if key[1] != store}

    def map_batch(self, change: Callable[[Tensor], Tensor]) -> None:
        """Apply it to every table; what was one tensor stays one, since copies know by that what they came from."""
        moved: dict[int, tuple[Tensor, Tensor]] = {}

        def once(table: Tensor) -> Tensor:
            if id(table) not in moved:
                moved[id(table)] = table, change(table)
            return moved[id(table)][1]

        self.tables = {name: once(table) for name, table in self.tables.items()}
        self.gains = {layer: once(gain) for layer, gain in self.gains.items()}
        self.spread = {key: (once(source), once(full)) for key, (source, full) in self.spread.items()}
        self.derived = {
            key: ([once(source) for source in sources], None if made is None else once(made))
            for key, (sources, made) in self.derived.items()
        }
        self.seen = once(self.seen)
        self.batch = len(self.seen)
        if self.stream is not None:
            self.stream.map_batch(change)

    def of_keys(self, step: Step, store: Store, width: int, name: str, layer: int | None = None) -> Tensor:
        """Return the table over the last `width` key slots that a layer sees, [B, width], made once per prompt."""
        table = self.tables.get((name, layer))
        if table is None:
            kind = torch.long if name == "span" else torch.bool
            return torch.full((step.batch, width), -1 if name == "span" else 0, dtype=kind, device=step.device)
        start = first_key(step, store, width)
        return self.slots(step, store, start + width, name, layer)[:, start : start + width]

    def slots(self, step: Step, store: Store, count: int, name: str, layer: int | None) -> Tensor:
        """Return a table over at least `count` physical slots of a layer; the same tensor until it has to grow."""
        table = self.tables[name, layer]
        filler = filler_of(table)
        source, full = self.spread.get((name, layer, store), (None, table))
        if source is not table:
            full = self.physical(step, store, table, filler)
        if full.shape[1] < count:
            full = pad(full, (0, count - full.shape[1] + ROOM), value=filler)
        self.spread[name, layer, store] = (table, full)
        return full

    def sets(
        self, step: Step, store: Store, width: int, correction: RowCorrection, tables: Mapping[str, Name]
    ) -> Tensor | None:
        """Return [B, n, width] from `correction.sets` of the image and the named tables, made once per prompt."""
        if ("image", None) not in self.tables:
            return None
        start = first_key(step, store, width)
        named = {"image": ("image", None), **tables}
        full = {name: self.slots(step, store, start + width, *table) for name, table in named.items()}
        sources = list(full.values())
        key = (correction.name, store, tuple(tables.values()))
        known, made = self.derived.get(key, ([], None))
        if [id(t) for t in known] != [id(t) for t in sources]:
            room = min(t.shape[1] for t in sources)
            cut = {name: table[:, :room] for name, table in full.items()}
            made = correction.sets(cut.pop("image"), cut)
            self.derived[key] = (sources, made)
        return None if made is None else made[..., start : start + width]

    def physical(self, step: Step, store: Store, table: Tensor, filler: int) -> Tensor:
        columns, _ = step.columns(store)
        if columns is None:
            return table
        columns = columns.to(table.device)
        known = columns < table.shape[1]
        return table.gather(1, columns.clamp_max(table.shape[1] - 1)).masked_fill(~known, filler)


def filler_of(table: Tensor) -> int:
    """Return what stands where nothing is known: no flag, or a number that names nothing."""
    return 0 if table.dtype == torch.bool else -1


def first_key(step: Step, store: Store, width: int) -> int:
    """Return the slot of the first key seen: sliding layers return the last keys, static caches unfilled slots too."""
    return max(step.stored(store) - width, 0)


class Marking(Component):
    """Keep marks of the tokens that run, where corrections, sparse prefills, evictions or decoding read them."""

    @classmethod
    def of(cls, session: Session) -> Marking | None:
        policy = session.policy
        wanted = policy.corrections or policy.sparse or policy.eviction or policy.steps
        return cls(session) if wanted else None

    def open_step(self, step: Step, cache: Any) -> None:
        """Find the marks of the sequence; there are none where somebody else filled the cache."""
        step.call.drop(Marks)
        marks = marks_of(cache, step.batch, step.past, self.session.serial)
        if marks is None:
            return
        if marks.batch != step.batch:
            marks.batch_repeat_interleave(step.batch // marks.batch)
        step.put(marks)
        step.call.put(marks)
        if isinstance(step, PromptStep):
            marks.open(step)

    def close_step(self, step: Step, cache: Any) -> None:
        """Leave the marks with the cache."""
        marks = step.find(Marks)
        if cache is not None and marks is not None:
            setattr(cache, ATTRIBUTE, marks)
            if marks.has_image and marks.batch > 1:
                follow(cache)

    def close_call(self, call: Call) -> None:
        """Drop the marks; the cache holds them."""
        call.drop(Marks)


def marks_of(cache: Any, batch: int, past: int, serial: str) -> Marks | None:
    """Return the marks on a cache; new ones at a sequence's start; None where this session did not fill the cache."""
    found: Marks | None = getattr(cache, ATTRIBUTE, None) if past else None
    if found is not None:
        return found if batch % found.batch == 0 and found.serial == serial else None
    return None if past else Marks(batch, serial)

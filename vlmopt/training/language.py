"""Stage 2: teach the language model to answer from ideal visual tokens, without pixels.

Visual tokens are the sums of word embeddings that stage 1 aims at, with noise and wrong words as a real tower makes.
Most background cells are left out (the rest keep their true positions), which keeps rows short and makes the model
robust to token removal. An architecture may name two aids, used in training only: probes ask an early layer for every
visual token's column and row, and one head of a middle layer is told to look, before an answer, at the object asked
about.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from vlmopt.synthetic.words import CELL, FIRST_SLOT, LARGEST, SECOND_SLOT

from .architecture import HIDDEN
from .data import IGNORE, Batch, Packer, Rows, Share
from .loop import Marked, tally
from .tower import cell_targets

PROBE_WEIGHT = 0.5
WRONG_WORD = 0.02  # probability that a word of a cell is replaced


class Reader(nn.Module):
    """The language model with its probes; one forward gives the loss of packed questions."""

    def __init__(self, model: Any, packer: Packer) -> None:
        super().__init__()
        self.language: Any = model.model.language_model
        self.packer, self.aids = packer, packer.architecture
        if self.aids.probed_layer is not None:
            self.probe = nn.Linear(HIDDEN, 2 * (LARGEST // CELL))

    @property
    def table(self) -> torch.Tensor:
        table: torch.Tensor = self.language.embed_tokens.weight
        return table

    def forward(self, batch: Rows, visual: torch.Tensor) -> Marked:
        """Compute loss and hits per kind of question from visual tokens [b, n, d]; aids are for images alone."""
        embeds = self.table[batch.ids]
        embeds = torch.cat([embeds[:, :2], visual.to(embeds.dtype), embeds[:, batch.visual.stop :]], dim=1)
        seen: dict[str, torch.Tensor] = {}
        with self._watch(seen), torch.autocast("cpu", torch.bfloat16):
            hidden = self.language(
                inputs_embeds=embeds,
                attention_mask=self.aids.mask(batch.mask),
                position_ids=batch.positions,
                use_cache=False,
            ).last_hidden_state
            asked = batch.labels != IGNORE
            logits = F.linear(hidden[asked], self.table).float()
        weights = batch.weights[asked]
        losses = F.cross_entropy(logits, batch.labels[asked], reduction="none")
        guesses = torch.full_like(batch.labels, IGNORE)
        guesses[asked] = logits.detach().argmax(-1)
        counts = tally(self._marks(batch, guesses))
        loss = (losses * weights).sum() / weights.sum()
        if "states" in seen and isinstance(batch, Batch):
            place = self._placing(batch, seen["states"])
            loss, counts["place"] = loss + PROBE_WEIGHT * place, (place.item(), 1.0)
        if self.aids.pointing and "weights" in seen and isinstance(batch, Batch):
            pointing, looked = self._pointing(batch, seen["weights"])
            loss, counts["looked"] = loss + self.aids.pointing.weight * pointing, (looked, 1.0)
        return loss, counts

    @contextlib.contextmanager
    def _watch(self, seen: dict[str, torch.Tensor]) -> Iterator[None]:
        """Keep what the aids ask for: `states` after the probed layer [b, s, d], `weights` of one head [b, s, s]."""
        with contextlib.ExitStack() as stack:
            if self.aids.probed_layer is not None:
                layer = self.language.layers[self.aids.probed_layer]
                handle = layer.register_forward_hook(lambda *args: seen.update(states=args[-1]))
                stack.callback(handle.remove)
            if (pointing := self.aids.pointing) is not None:
                attention = self.language.layers[pointing.layer].self_attn
                attention.watcher = lambda weights: seen.update(weights=weights[:, pointing.head])
                stack.callback(delattr, attention, "watcher")
            yield

    def _placing(self, batch: Batch, states: torch.Tensor) -> torch.Tensor:
        """Compute the loss of the visual tokens' columns and rows from states [b, s, d] after the probed layer."""
        with torch.autocast("cpu", torch.bfloat16):
            places = self.probe(F.rms_norm(states[:, batch.visual], (HIDDEN,))).float()
        columns = batch.grid[1]
        across, down = (
            F.cross_entropy(part.flatten(0, 1), target.flatten())
            for part, target in zip(places.chunk(2, dim=-1), (batch.kept % columns, batch.kept // columns), strict=True)
        )
        return across + down

    def _pointing(self, batch: Batch, weights: torch.Tensor) -> tuple[torch.Tensor, float]:
        """Compute loss, and mean attention on the object asked about, from weights [b, s, s] of the pointing head."""
        places, cells = batch.targets()
        rows = weights[places[:, 0], places[:, 1], batch.visual].float()
        mass = (rows * cells).sum(-1)[cells.any(-1)]
        return -(mass + 1e-4).log().mean(), mass.mean().item()

    def _marks(self, batch: Rows, guesses: torch.Tensor) -> Iterator[tuple[str, bool]]:
        """Yield teacher-forced marks: coordinates count when they fall into the box, others when all is right."""
        for row, places, question in batch.spans:
            guess = guesses[row, places].tolist()
            if question.kind in ("click", "point") and question.box is not None:
                x, y = self.packer.value.get(guess[1], -1), self.packer.value.get(guess[3], -1)
                x0, y0, x1, y1 = question.box
                yield question.kind, x0 <= x < x1 and y0 <= y < y1
            else:
                yield batch.marks[row] + question.kind, guess == batch.labels[row, places].tolist()


class LanguageStage:
    """Work for `Loop`: symbolic images that grow from few objects and cells to full ones."""

    def __init__(self, reader: Reader, packer: Packer, share: Share, steps: int) -> None:
        self.reader, self.packer, self.share, self.steps = reader, packer, share, steps

    def __call__(self, step: int) -> Marked:
        grown = min(1.0, step / (0.5 * self.steps))
        objects, questions = round(2 + 5 * grown), round(8 + 6 * grown)
        first = self.share.first(step)
        worlds = self.packer.draw(first, self.share.count, objects=objects, questions=questions)
        batch = self.packer.pack(worlds, keep=32 + 16 * round(4 * grown), seed=first)
        marked: Marked = self.reader(batch, self.symbolic(batch, first))
        return marked

    def symbolic(self, batch: Batch, seed: int) -> torch.Tensor:
        """Return ideal tokens of the kept cells with noise of norm 0.1 to 0.7 and a few wrong words: [b, n, d]."""
        random = torch.Generator().manual_seed(seed)
        slots = batch.slots.gather(2, batch.kept.expand(len(batch.slots), -1, -1)).clone()
        self._fill_labels(batch, slots, random)
        for slot, words in zip(slots[:2], (FIRST_SLOT, SECOND_SLOT), strict=True):
            wrong = (torch.rand(slot.shape, generator=random) < WRONG_WORD) & (slot >= 0)
            slot[wrong] = torch.randint(len(words), (int(wrong.sum()),), generator=random)
        tokens = cell_targets(slots, self.packer.slot_ids, self.reader.table)
        noise: torch.Tensor = torch.randn(tokens.shape, generator=random) / tokens.shape[-1] ** 0.5
        return tokens + noise * (0.1 + 0.6 * torch.rand(len(tokens), 1, 1, generator=random))

    def _fill_labels(self, batch: Batch, slots: torch.Tensor, random: torch.Generator) -> None:
        """Spread labels over a random part of their widgets' other cells, as a real tower may or may not do."""
        share = torch.rand(len(batch.worlds), generator=random)
        spread = torch.rand(slots.shape[1:], generator=random) < share[:, None]
        x, y = batch.centres()
        for row, world in enumerate(batch.worlds):
            for thing in world.objects if world.family == "screen" else ():
                x0, y0, x1, y1 = thing.box
                inside = (x[row] >= x0) & (x[row] < x1) & (y[row] >= y0) & (y[row] < y1)
                slots[0, row, inside & spread[row] & (slots[0, row] == -2)] = FIRST_SLOT.index(thing.name)

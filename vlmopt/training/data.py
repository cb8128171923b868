"""Batches of generated images, packed so that every question is answered as if it were the only one.

A row is: prefix, visual tokens, end of vision, then question/answer blocks. Blocks see the image and themselves,
never each other, and all start at the same position: exactly what `generate` sees with one question.
"""

from __future__ import annotations

import functools
import random
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerFast

from vlmopt.synthetic import Question, World, scene, screen
from vlmopt.synthetic.words import CELL, COORDINATES, FIRST_SLOT, SECOND_SLOT

from .architecture import Architecture
from .vocabulary import ASSISTANT, END, PAD, USER, VISION_END, VISION_START, coordinate_ids, word_id

FIRST_TRAINING_SEED = 1_000_000_000  # smaller seeds are left to tests and measurements
IGNORE = -100
MARKS = {"scene": "", "screen": "s_", "film": "f_"}  # before a question's kind; others: h_
ROUND = 32  # text tokens; few distinct lengths let the matrix library reuse its compiled kernels


@dataclass(frozen=True)
class Rows:
    """`b` rows with `n` visual tokens each, and `w` text tokens after them; `s = 3 + n + w`.

    ids [b, s] (visual places hold padding) · positions [3, b, s] or [b, s] · mask [b, 1, s, s] additive · labels
    [b, s]: the token to predict next · weights [b, s] · spans: (row, places whose next token is the answer, question) ·
    marks: what a row's kinds of questions are called by in the log · visual: the places of visual tokens.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    mask: torch.Tensor
    labels: torch.Tensor
    weights: torch.Tensor
    spans: list[tuple[int, slice, Question]]
    marks: list[str]
    visual: slice


@dataclass(frozen=True)
class Batch(Rows):
    """Rows about images of one size.

    kept [b, n] indices into the grid · slots [2 or 4, b, cells] · grid (rows, columns) · corner: the grid's row and
    column where the images begin.
    """

    worlds: list[World]
    kept: torch.Tensor
    slots: torch.Tensor
    grid: tuple[int, int]
    corner: tuple[int, int]

    def targets(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return where to look: places [m, 2] (row, place) and the cells of the box asked about, bool [m, n].

        The places are the text tokens that predict the first word of an answer, or either coordinate.
        """
        pointed = [
            (row, places.start + later, question.box)
            for row, places, question in self.spans
            if question.box
            for later in ((0, 1, 3) if question.kind in ("click", "point") else (0,))
        ]
        places = torch.tensor([(row, place) for row, place, _ in pointed])
        x0, y0, x1, y1 = torch.tensor([box for *_, box in pointed]).T[..., None]
        x, y = (centres[places[:, 0]] for centres in self.centres())
        return places, (x >= x0) & (x < x1) & (y >= y0) & (y < y1)

    def centres(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return x and y of the kept cells' centres [b, n], in pixels of their image."""
        (top, left), columns = self.corner, self.grid[1]
        return (self.kept % columns - left) * CELL + CELL // 2, (self.kept // columns - top) * CELL + CELL // 2


@dataclass(frozen=True)
class Share:
    """The part of every step's `batch` images that worker `rank` of `workers` draws, starting at image `start`."""

    batch: int
    start: int = 0
    rank: int = 0
    workers: int = 1

    @property
    def count(self) -> int:
        return self.batch // self.workers

    def first(self, step: int) -> int:
        return self.start + step * self.batch + self.rank * self.count


class Packer:
    """Draws images by number and packs them; the same numbers give the same batch."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, architecture: Architecture) -> None:
        self.architecture = architecture
        name = tokenizer.convert_tokens_to_ids
        self.prefix, self.vision_end = [name(USER), name(VISION_START)], name(VISION_END)
        self.assistant, self.end, self.pad = name(ASSISTANT), name(END), name(PAD)
        self.slot_ids = tuple(
            torch.tensor([word_id(tokenizer, word) for word in slot]) for slot in (FIRST_SLOT, SECOND_SLOT)
        )
        if architecture.places:
            self.slot_ids += tuple(torch.tensor([coordinate_ids(tokenizer, v) for v in COORDINATES]).unbind(1))
        self.value = {token: value for value in COORDINATES for token in coordinate_ids(tokenizer, value)}
        self.encode = functools.lru_cache(maxsize=200_000)(
            lambda text: tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
        )

    def draw(
        self, first: int, count: int, *, objects: int, questions: int, size: tuple[int, int] | None = None
    ) -> list[World]:
        """Draw `count` images from number `first` on: half scenes, half screens, one size, up to `objects` things."""
        rng = random.Random(f"draw/{first}")
        sizes = self.architecture.sizes
        size = size or rng.choices(list(sizes), list(sizes.values()))[0]
        return [
            scene(FIRST_TRAINING_SEED + seed, size, shapes=rng.randint(1, min(objects, 6)), questions=questions)
            if seed % 2
            else screen(FIRST_TRAINING_SEED + seed, size, widgets=rng.randint(1, min(objects, 7)), questions=questions)
            for seed in range(first, first + count)
        ]

    def pack(self, worlds: list[World], keep: int, seed: int) -> Batch:
        """Pack worlds into rows with `keep` visual tokens each.

        Cells of objects come first, then others at random, in reading order.
        """
        image = worlds[0].cells.shape[1:]
        slots = self.architecture.slots(worlds)  # [2 or 4, b, rows, columns]
        rows, columns = slots.shape[2:]
        slots = slots.flatten(2)
        cells = rows * columns
        keep = min(keep, cells)
        kept = self._keep(slots, self.architecture.inside(*image), keep, seed)
        seen, after = self.architecture.positions(kept, rows, columns)
        packed = self.rows(
            [world.questions for world in worlds], [MARKS.get(w.family, "h_") for w in worlds], seen, after
        )
        corner = self.architecture.corner(*image)
        return Batch(**vars(packed), kept=kept, slots=slots, worlds=worlds, grid=(rows, columns), corner=corner)

    def rows(self, questions: list[list[Question]], marks: list[str], seen: torch.Tensor, after: int) -> Rows:
        """Lay out the questions about each image or film behind its visual tokens.

        Args:
            questions: of each row.
            marks: what kinds of questions are called by in the log, before their own name; of each row.
            seen: positions of the visual tokens, [axes, b, n] or [b, n].
            after: the first position after them.
        """
        seen = seen if seen.ndim == 3 else seen[None]
        axes, b, keep = seen.shape
        blocks = [[self._block(q.text, q.answer) for q in row] for row in questions]
        width = max(sum(len(ids) for ids, _ in row) for row in blocks)
        width += -width % ROUND
        length = 3 + keep + width
        ids = torch.full((b, length), self.pad)
        ids[:, :2], ids[:, 2 + keep] = torch.tensor(self.prefix), self.vision_end
        positions = torch.zeros(axes, b, length, dtype=torch.long)
        positions[:, :, 1], positions[:, :, 2 + keep] = 1, after
        positions[:, :, 2 : 2 + keep] = seen
        labels, weights = torch.full((b, length), IGNORE), torch.zeros(b, length)
        block = torch.zeros(b, length, dtype=torch.long)
        spans = []
        for i, row in enumerate(blocks):
            at = 3 + keep
            for number, (tokens, answer) in enumerate(row, start=1):
                end = at + len(tokens)
                ids[i, at:end] = torch.tensor(tokens)
                positions[:, i, at:end] = after + 1 + torch.arange(len(tokens))
                block[i, at:end] = number
                labels[i, end - answer - 1 : end - 1] = ids[i, end - answer : end]
                weights[i, end - answer - 1 : end - 1] = min(answer**-0.5, 2.4 / answer)
                spans.append((i, slice(end - answer - 1, end - 1), questions[i][number - 1]))
                at = end
            block[i, at:] = -1
        sees = (block[:, :, None] == block[:, None, :]) | (block == 0)[:, None, :]
        sees &= torch.ones(length, length, dtype=torch.bool).tril()
        mask = torch.zeros(b, 1, length, length, dtype=torch.bfloat16)
        mask.masked_fill_(~sees[:, None], -1e4)
        positions = positions.squeeze(0)  # a single axis has no dimension of its own
        return Rows(ids, positions, mask, labels, weights, spans, marks, slice(2, 2 + keep))

    def _block(self, text: str, answer: str) -> tuple[list[int], int]:
        """Return tokens of one question and its answer, and how many of them are to be predicted."""
        reply = [*self.encode(answer), self.end]
        return [*self.encode(text), self.assistant, *reply], len(reply)

    def _keep(self, slots: torch.Tensor, inside: torch.Tensor, keep: int, seed: int) -> torch.Tensor:
        random = torch.Generator().manual_seed(seed)
        background = SECOND_SLOT.index("background")
        urgency = torch.rand(slots.shape[1:], generator=random)
        urgency += (slots[0] >= 0).float() + 0.3 * ((slots[1] != background) & inside).float()
        return urgency.topk(keep, dim=1).indices.sort(dim=1).values

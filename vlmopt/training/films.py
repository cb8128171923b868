"""Train `tiny-qwen` on short films: `python -m vlmopt.training.films --out DIR`.

Tower and language model together, on 8 or 16 frames of 168x168 pixels, with questions that no single frame answers.
Some batches see fewer frames, evenly spread, and some lose a random part of their visual tokens, so that the model has
met both. The run resumes from DIR, and the finished checkpoint is written to DIR/checkpoint.
"""

from __future__ import annotations

import argparse
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vlmopt.checkpoints import load_checkpoint
from vlmopt.focusui.schedule import Schedule
from vlmopt.synthetic.films import Film, film
from vlmopt.synthetic.words import CELL

from .architecture import MEAN, STD, set_attention
from .data import FIRST_TRAINING_SEED, MARKS, Packer, Share
from .export import export
from .language import Reader
from .loop import Loop, Marked, restore
from .qwen import QWEN, TOKENS_PER_SECOND

START, SIZE = 5_000_000, (168, 168)
FRAMES = (8, 8, 8, 16)
FEWER, PRUNED = 0.3, 0.3  # fractions of the batches that see fewer frames, or lose tokens
PAIR = 2  # frames in a temporal patch
PER_SECOND = 2.0  # frames
STEPS, BATCH, RATE, COOLDOWN, AVERAGE = 1600, 12, 1e-3, 0.8, 0.98


class FilmStage:
    """Work for `Loop`: films of one length through the whole model."""

    def __init__(self, model: Any, reader: Reader, packer: Packer, share: Share) -> None:
        self.model, self.reader, self.packer, self.share = model, reader, packer, share

    def __call__(self, step: int) -> Marked:
        rng = random.Random(f"films/{step}")
        frames = rng.choice(FRAMES)
        shown = PAIR * rng.randint(1, frames // PAIR - 1) if rng.random() < FEWER else frames
        share = rng.uniform(0.1, 0.9) if rng.random() < PRUNED else 1.0
        first = FIRST_TRAINING_SEED + self.share.first(step)
        films = [film(seed, SIZE, frames=frames) for seed in range(first, first + self.share.count)]
        chosen = np.linspace(0, frames - 1, shown).round().astype(int).tolist()
        pixels, grid = patches(films, chosen)
        with torch.autocast("cpu", torch.bfloat16):
            tokens = self.model.model.visual(pixels, grid_thw=grid).pooler_output
        tokens = tokens.float().view(len(films), -1, tokens.shape[-1])
        count = tokens.shape[1]
        urgency = torch.rand(len(films), count, generator=torch.Generator().manual_seed(first))
        kept = urgency.topk(max(round(share * count), 1), dim=1).indices.sort(dim=1).values
        seen, after = positions(kept, grid[0].tolist(), frames / shown)
        rows = self.packer.rows([one.questions for one in films], [MARKS["film"]] * len(films), seen, after)
        marked: Marked = self.reader(rows, tokens.gather(1, kept[..., None].expand(-1, -1, tokens.shape[-1])))
        return marked


def patches(films: list[Film], chosen: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the chosen frames as the stock video processor lays them out: [b·cells, 3·2·14·14] and grid [b, 3]."""
    frames = np.stack([np.stack([np.asarray(one.frames[i]) for i in chosen]) for one in films])
    pixels = (torch.from_numpy(frames).float() / 255 - MEAN) / STD  # [b, t, h, w, 3]
    b, t, height, width, _ = pixels.shape
    rows, columns = height // CELL, width // CELL
    tiles = pixels.view(b, t // PAIR, PAIR, rows, CELL, columns, CELL, 3).permute(0, 1, 3, 5, 7, 2, 4, 6)
    return tiles.reshape(b * (t // PAIR) * rows * columns, -1), torch.tensor([[t // PAIR, rows, columns]] * b)


def positions(kept: torch.Tensor, grid: list[int], apart: float) -> tuple[torch.Tensor, int]:
    """Return positions [3, b, n] of the kept cells [b, n], and the first position after the whole film.

    Args:
        grid: (t, h, w); text goes on behind height or width, however many frames there are, as transformers 5 has it.
        apart: how many frames of the film lie between one that is shown and the next.
    """
    h, w = grid[1:]
    step = TOKENS_PER_SECOND * PAIR * apart / PER_SECOND
    times = (kept // (h * w) * step).long()
    return 2 + torch.stack([times, kept // w % h, kept % w]), 2 + max(h, w)


def main(arguments: list[str] | None = None) -> None:
    """Train and write the checkpoint."""
    parser = argparse.ArgumentParser(prog="python -m vlmopt.training.films", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="where the run keeps its state; run again to resume")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"optimizer steps, default {STEPS}")
    parser.add_argument("--threads", type=int, default=2, help="default 2")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(options.threads)
    model, processor = load_checkpoint("tiny-qwen", dtype=torch.float32)
    set_attention(model)
    model.get_input_embeddings().weight.requires_grad_(False)
    tokenizer = processor.tokenizer
    packer = Packer(tokenizer, replace(QWEN, probed_layer=None, pointing=None))
    reader = Reader(model, packer)
    schedule = Schedule(options.steps, RATE, cooldown=COOLDOWN)
    modules = {"visual": model.model.visual, "reader": reader}
    loop = Loop(modules, options.out / "films.pt", schedule, AVERAGE)
    loop.run(FilmStage(model, reader, packer, Share(BATCH, START)))
    restore(options.out / "films.pt", modules)
    export(model, tokenizer, QWEN, options.out / "checkpoint")


if __name__ == "__main__":
    main()

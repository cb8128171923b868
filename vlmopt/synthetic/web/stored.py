"""Windows of rendered web pages on disk, so that training needs no browser: arrays mapped into memory, one per size."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from vlmopt.synthetic import Question, World
from vlmopt.synthetic.base import Box, Thing
from vlmopt.synthetic.web.catalogue import TRAIN
from vlmopt.synthetic.web.render import Renderer
from vlmopt.synthetic.web.windows import candidates, window
from vlmopt.synthetic.words import CELL

Size = tuple[int, int]
Source = Callable[[Size, int, int], Iterator[World]]  # (size, count, a number that tells runs apart)

PER_PAGE = 6  # windows of one rendered page
QUESTIONS = 8


class Windows:
    """Windows by size; `draw` makes worlds of them again."""

    def __init__(self, directory: Path, sizes: Mapping[Size, float]) -> None:
        self.images = {size: np.load(part(directory, size, "images.npy"), mmap_mode="r") for size in sizes}
        self.cells = {size: np.load(part(directory, size, "cells.npy"), mmap_mode="r") for size in sizes}
        self.facts = {size: json.loads(part(directory, size, "json").read_text(encoding="utf-8")) for size in sizes}

    def draw(self, number: int, count: int, size: Size) -> list[World]:
        """Return `count` different windows; the same number gives the same ones."""
        chosen = random.Random(f"windows/{number}").sample(range(len(self.facts[size])), count)
        return [self.world(size, index) for index in chosen]

    def world(self, size: Size, index: int) -> World:
        facts = self.facts[size][index]
        questions = [Question(q["text"], q["answer"], q["kind"], maybe(q["box"])) for q in facts["questions"]]
        objects = [Thing(t["name"], t["sort"], box(t["box"]), maybe(t["text_box"])) for t in facts["objects"]]
        image, cells = Image.fromarray(self.images[size][index]), np.array(self.cells[size][index])
        return World(image, questions, objects, cells, family="screen", theme=facts["theme"])


def box(sides: list[int]) -> Box:
    x0, y0, x1, y1 = sides
    return x0, y0, x1, y1


def maybe(sides: list[int] | None) -> Box | None:
    return None if sides is None else box(sides)


def part(directory: Path, size: Size, name: str) -> Path:
    return directory / f"{size[0]}x{size[1]}.{name}"


def make(directory: Path, sizes: Mapping[Size, float], count: int, source: Source) -> None:
    """Render `count` images, shared out over the sizes by weight; sizes that are there are left."""
    directory.mkdir(parents=True, exist_ok=True)
    for number, (size, weight) in enumerate(sizes.items()):
        if part(directory, size, "json").exists():
            continue
        wanted = round(count * weight / sum(sizes.values()))
        worlds = list(tqdm(source(size, wanted, number), total=wanted, desc=f"{directory.name} {size[0]}x{size[1]}"))
        np.save(part(directory, size, "images.npy"), np.stack([np.asarray(world.image) for world in worlds]))
        np.save(part(directory, size, "cells.npy"), np.stack([world.cells for world in worlds]))
        facts = [
            {"questions": list(map(asdict, w.questions)), "objects": list(map(asdict, w.objects)), "theme": w.theme}
            for w in worlds
        ]
        part(directory, size, "json").write_text(json.dumps(facts), encoding="utf-8")  # last: it says that all is there


def windows(size: Size, count: int, number: int) -> Iterator[World]:
    """Yield windows of training pages in turn, each page filled anew every time."""
    made = 0
    with Renderer(cell=CELL) as renderer:
        for turn in range(10 * count):
            screen = renderer.render(TRAIN[turn % len(TRAIN)], 1_000 * number + turn // len(TRAIN))
            targets = candidates(screen, size)
            random.Random(f"cut/{number}/{turn}").shuffle(targets)
            for target in targets[:PER_PAGE]:
                if made == count:
                    return
                yield window(screen, target, size, seed=turn, questions=QUESTIONS)
                made += 1

"""What is trained on: an image, an instruction, the right answer and where it is; a function of a running number."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from vlmopt.choices import UNITS
from vlmopt.evaluation.data import Sample, Source
from vlmopt.evaluation.loading import load_data
from vlmopt.evaluation.prompts import POINT_PROMPTS
from vlmopt.media import load_image
from vlmopt.metrics.clicks import WHOLE
from vlmopt.synthetic import Question, World, scene, screen
from vlmopt.synthetic.asked import SIZES, SIZES_OF
from vlmopt.synthetic.words import CELL

FIRST_SEED = 2_000_000_000  # of generated screens; smaller ones are left to other trainings, tests and measurements
CLICKS = 0.5  # fraction of examples that are clicks where other kinds of questions are wanted, too
PER_PAGE = 6  # windows cut out of one rendered page
ATTEMPTS = 100  # fillings of pages until one has a target that fits
DRAWN, EVERY, RENDERED = "worlds:screen", "worlds", "web"
HELD_OUT = "held-out"

Box = tuple[float, float, float, float]
Resized = Callable[[Image.Image], tuple[int, int]]


@dataclass(frozen=True)
class Example:
    """`boxes` (x0, y0, x1, y1) in fractions of the image; none where the question is not about one place."""

    image: Image.Image = field(repr=False)
    question: str
    answer: str
    boxes: tuple[Box, ...] = ()


class Examples(ABC):
    """Base of endless sources of examples."""

    @abstractmethod
    def draw(self, number: int, clicks: bool) -> Example:
        """Return example `number`; `clicks` asks for one with a box."""

    def close(self) -> None:  # noqa: B027 (most sources hold nothing)
        """Let go of what the source holds."""


@dataclass
class Mixed(Examples):
    """Take several sources in turn."""

    parts: list[Examples]

    def draw(self, number: int, clicks: bool) -> Example:
        turn, part = divmod(number, len(self.parts))
        return self.parts[part].draw(turn, clicks)

    def close(self) -> None:
        for part in self.parts:
            part.close()


@dataclass
class Screens(Examples):
    """Draw screens of sizes that suit the model; with `scenes` every other image is a scene where it may be."""

    seed: int
    model_type: str
    scenes: bool = False

    def draw(self, number: int, clicks: bool) -> Example:
        rng = random.Random(f"screens/{self.seed}/{number}/{clicks}")
        if self.scenes and not clicks and number % 2:
            world = scene(FIRST_SEED + rng.randrange(FIRST_SEED), rng.choice(sizes(self.model_type)), questions=16)
            question = rng.choice(world.questions)
            return Example(world.image, question.text, question.answer)
        while True:
            world = screen(FIRST_SEED + rng.randrange(FIRST_SEED), rng.choice(sizes(self.model_type)), questions=16)
            if any(question.kind == "click" for question in world.questions):
                return of_world(world, rng, clicks)


class Pages(Examples):
    """Render windows of training pages as they are asked for; neighbouring numbers share a page."""

    def __init__(self, seed: int, model_type: str) -> None:
        from vlmopt.synthetic.web.render import Renderer

        self.seed, self.sizes = seed, sizes(model_type)
        self.renderer: Any = Renderer(cell=CELL).__enter__()
        self.last: tuple[int, Any] = (-1, None)

    def draw(self, number: int, clicks: bool) -> Example:
        from vlmopt.synthetic.web.windows import candidates, window

        page, part = divmod(number, PER_PAGE)
        rng = random.Random(f"pages/{self.seed}/{number}/{clicks}")
        size = rng.choice(self.sizes)
        for attempt in range(ATTEMPTS):
            rendered = self.rendered(page + attempt)
            if targets := candidates(rendered, size):
                return of_world(window(rendered, rng.choice(targets), size, seed=part, questions=8), rng, clicks)
        raise ValueError(f"no target of the training pages fits into {size[0]}x{size[1]} pixels")

    def rendered(self, page: int) -> Any:
        """Return the page that belongs to a number, filled from it."""
        from vlmopt.synthetic.web.catalogue import TRAIN

        if self.last[0] != page:
            name = random.Random(f"page/{self.seed}/{page}").choice(TRAIN)
            self.last = (page, self.renderer.render(name, page))
        return self.last[1]

    def close(self) -> None:
        self.renderer.__exit__(None, None, None)


class Stored(Examples):
    """Read windows of training pages that lie rendered in a directory (`vlmopt.synthetic.web.stored.make`)."""

    def __init__(self, seed: int, directory: Path) -> None:
        from vlmopt.synthetic.web.stored import Windows

        names = [path.stem for path in sorted(directory.glob("*x*.json"))]
        if not names:
            raise ValueError(f"{directory} holds no rendered windows; leave it out and pages are rendered as needed")
        sides = [name.split("x") for name in names]
        self.seed, self.sizes = seed, [(int(width), int(height)) for width, height in sides]
        self.windows = Windows(directory, dict.fromkeys(self.sizes, 1.0))

    def draw(self, number: int, clicks: bool) -> Example:
        rng = random.Random(f"stored/{self.seed}/{number}/{clicks}")
        size = rng.choice(self.sizes)
        return of_world(self.windows.world(size, rng.randrange(len(self.windows.facts[size]))), rng, clicks)


@dataclass
class Clicks(Examples):
    """Read a data set of instructions with boxes, in a new order each round; answers are points in model units."""

    samples: list[Sample]
    seed: int
    units: str
    resized: Resized
    order: tuple[int, list[int]] = (-1, [])

    def draw(self, number: int, clicks: bool) -> Example:
        turn, place = divmod(number, len(self.samples))
        if self.order[0] != turn:
            places = range(len(self.samples))
            self.order = (turn, random.Random(f"clicks/{self.seed}/{turn}").sample(places, len(places)))
        sample = self.samples[self.order[1][place]]
        image = load_image(sample.images[0]).image
        box = fractions(sample.box, image.size)
        question = POINT_PROMPTS[self.units].replace("{question}", sample.question)
        return Example(image, question, self.answer(box, image), (box,))

    def answer(self, box: Box, image: Image.Image) -> str:
        x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
        if self.units == "unit":
            return f"({x:.3f}, {y:.3f})"
        if self.units == "loc":
            return f"<loc{min(round(1024 * y), 1023):04}><loc{min(round(1024 * x), 1023):04}>"
        if self.units in WHOLE:
            return f"({round(WHOLE[self.units] * x)}, {round(WHOLE[self.units] * y)})"
        width, height = self.resized(image) if self.units == "resized" else image.size
        return f"({round(x * width)}, {round(y * height)})"


def of_world(world: World, rng: random.Random, clicks: bool) -> Example:
    """Return one question about a generated image."""
    only = clicks or rng.random() < CLICKS
    question: Question = rng.choice([q for q in world.questions if q.kind == "click" or not only])
    boxes = () if question.box is None else (fractions(question.box, world.size),)
    return Example(world.image, question.text, question.answer, boxes)


def fractions(box: Any, size: tuple[int, int]) -> Box:
    """Convert a box from pixels of an image of `size` (width, height) to fractions of it, cut to the image."""
    x0, y0, x1, y1 = (min(max(side / size[axis % 2], 0.0), 1.0) for axis, side in enumerate(box))
    return x0, y0, x1, y1


def sizes(model_type: str) -> list[tuple[int, int]]:
    return list(SIZES_OF.get(model_type, SIZES))


def examples(
    data: str, seed: int, model_type: str, resized: Resized, run: Path, *,
    boxes: str | None = None, images: str | None = None, units: str | None = None,
) -> Examples:  # fmt: skip
    """Open the source that a user names.

    Args:
        data: "worlds:screen", "worlds", "web", "web:DIR" (windows rendered before), or a file of ScreenSpot's kind.
        resized: size of an image behind the processor, for models that count in its pixels.
        run: where relative paths of images start.
        boxes, images: how the file's boxes are written, and where its images are.
        units: of points; None where the model does not say, for sources that need none.

    Raises:
        ValueError: no such data, or some of it is held out for measuring.
    """
    if data in (DRAWN, EVERY):
        return Screens(seed, model_type, scenes=data == EVERY)
    if data == RENDERED:
        return Pages(seed, model_type)
    if data.startswith(RENDERED + ":"):
        return Stored(seed, Path(data.removeprefix(RENDERED + ":")))
    if units is not None and units not in UNITS:
        raise ValueError(f"--points {units!r} is unknown: choose from {', '.join(UNITS)}")
    if not Path(data).exists():
        raise ValueError(f"--data {data!r} is neither {DRAWN}, {EVERY}, {RENDERED} nor a file of ScreenSpot's kind")
    samples = load_data(Source(data=[data], run=run, images=images, boxes=boxes, model_type=model_type)).samples
    if held := sum(sample.extra.get("split") == HELD_OUT for sample in samples):
        raise ValueError(f"{held} of {len(samples)} samples of {data} are held out for measuring; train on others")
    usable = [s for s in samples if s.box is not None and s.error is None and len(s.images) == 1]
    if not usable:
        raise ValueError(f"{data} has no sample with one image and a box")
    if units is None:
        raise ValueError(f"give --points {' | '.join(UNITS)}: the units of coordinates of {model_type!r} are not known")
    return Clicks(usable, seed, units, resized)

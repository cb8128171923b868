"""Generated images by name: no file, no network, exact truth."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby, islice
from pathlib import Path

from ...atomic import atomic_write
from ...choices import WORLDS
from ...core import near
from ...metrics import phrases
from ...synthetic import Question, World
from ...synthetic.asked import SIZES, SIZES_OF, one_of_each_kind
from ...synthetic.hallucination import DEGRADATIONS, DESCRIBE, HabitWorld, class_of, classes, hallucination
from ...synthetic.polling import SPLITS, pope
from ..data import Data, Sample, Source
from .files import Entry
from .manifest import WORLD_KINDS

NAME = "worlds"
HELP = "generated images: worlds, worlds:scene, worlds:screen, worlds:pope or worlds:captions, no file"
FIRST_SEED = 640_000_000  # training uses 1e9 and up, calibration 4e8, benchmarks and model cards 5e8 to 6.2e8
SEEDS = 1_000_000  # images of one --seed
SAMPLES = 200  # without --limit
COMPANY = 0.5  # how often the partner that habit expects is there; 0.85 in training
SPREAD = 200  # images that few questions are spread over
POLLS = 6  # questions about an image in each split of POPE
FEWEST = 8  # images from which POPE has enough names to deny


def is_name(name: str) -> bool:
    return name == NAME or name.startswith(f"{NAME}:")


def recognises(entries: Sequence[Entry]) -> bool:
    return False


def read(source: Source) -> Data:
    """Generate questions of every kind about scenes and screens; POPE about scenes of habit, or captions of them.

    Raises:
        ValueError: unknown worlds.
    """
    name = " ".join(source.data)
    maker = MAKERS.get(name)
    if maker is None:
        raise ValueError(f"--data {name!r} is unknown{near(name, MAKERS)}; {HELP}")
    samples = islice(maker(source, name.partition(":")[2]), source.limit or SAMPLES)
    lexicon = phrases(classes(), "colours and shapes of the generated images")
    return Data(format=NAME, samples=tuple(samples), lexicon=lexicon, stops=",")


def plain(source: Source, family: str) -> Iterator[Sample]:
    """Yield one question of each kind about each image, one about every image before the second about any."""
    wanted = source.limit or SAMPLES
    made: list[tuple[World, list[Question]]] = []
    asked = one_of_each_kind(wanted, first_seed(source), SIZES_OF.get(source.model_type, SIZES))
    for _, pairs in groupby(asked, key=lambda pair: pair[0].family):  # scenes and screens take turns
        worlds, questions = zip(*pairs, strict=True)
        if family in ("", worlds[0].family):
            made.append((worlds[0], list(questions)))
        if len(made) >= min(wanted, SPREAD) and sum(len(own) for _, own in made) >= wanted:
            break
    for turn in range(max(len(own) for _, own in made)):
        for index, (world, own) in enumerate(made):
            if turn < len(own):
                name = f"{world.family}-{source.seed}-{index:06d}"
                yield sample(source, world, name, own[(index + turn) % len(own)])


def sample(source: Source, world: World, name: str, question: Question) -> Sample:
    kind = "caption" if question.text == DESCRIBE else WORLD_KINDS[question.kind]
    box = question.box if kind == "click" else None
    return Sample(
        id=f"{name}/{question.kind}",
        question=question.text,
        kind=kind,
        images=(drawn(source, world, name),),
        answer=question.answer,
        category=f"{world.family} {question.kind}",
        box=None if box is None else (box[0], box[1], box[2] - 1, box[3] - 1),  # edges included
        objects=tuple(map(class_of, world.objects)) if kind == "caption" else None,
        picture=name,
    )


def polled(source: Source, _: str) -> Iterator[Sample]:
    """Yield POPE's three splits about the same images, one question about every image before the second about any."""
    wanted, each = source.limit or SAMPLES, POLLS * len(SPLITS)
    worlds = habits(source, max(FEWEST, -(-wanted // each), min(wanted, SPREAD)))
    polls = {split: list(pope(worlds, split, seed=source.seed)) for split in SPLITS}
    for turn in range(each):
        for index, world in enumerate(worlds):
            split, number = divmod((index + turn) % each, POLLS)
            name, poll = f"habit-{source.seed}-{index:06d}", polls[SPLITS[split]][POLLS * index + number]
            yield Sample(
                id=f"{SPLITS[split]}/{name}/{number}",
                question=poll.text,
                kind="yes_no",
                images=(drawn(source, world, name),),
                answer=poll.label,
                category=SPLITS[split],
                picture=name,
                extra={"groups": [world.degradation]},
            )


def captions(source: Source, _: str) -> Iterator[Sample]:
    for index, world in enumerate(habits(source, source.limit or SAMPLES)):
        name = f"habit-{source.seed}-{index:06d}"
        yield Sample(
            id=name,
            question=DESCRIBE,
            kind="caption",
            images=(drawn(source, world, name),),
            category=world.degradation,
            objects=tuple(world.classes),
            picture=name,
        )


def habits(source: Source, count: int) -> list[HabitWorld]:
    """Return scenes of habit, with degradations and the sizes that suit the model in turn."""
    sizes = SIZES_OF.get(source.model_type, SIZES)
    return [
        hallucination(
            first_seed(source) + number,
            sizes[number // len(DEGRADATIONS) % len(sizes)],
            degradation=DEGRADATIONS[number % len(DEGRADATIONS)],
            company=COMPANY,
        )
        for number in range(count)
    ]


def first_seed(source: Source) -> int:
    return FIRST_SEED + SEEDS * source.seed


def drawn(source: Source, world: World, name: str) -> str:
    """Save an image, whole or not at all, unless an earlier run did; return its path relative to the run."""
    path = Path("pictures") / f"{name}.png"
    if not (source.run / path).exists():
        (source.run / path).parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(source.run / path) as fresh:
            world.image.save(fresh, format="PNG")
    return path.as_posix()


MAKERS: dict[str, Callable[[Source, str], Iterator[Sample]]] = dict(
    zip(WORLDS, (plain, plain, plain, polled, captions), strict=True)
)

"""Which generated images a checkpoint is asked about: their sizes, and one question of every kind."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from . import Question, World, scene, screen

SIZES = ((224, 224), (224, 224), (280, 196), (196, 280))  # half of the images are square
# Images that a checkpoint pads to squares are asked about in shapes that need it, by model type.
SIZES_OF = {"llava": ((224, 168), (168, 224), (224, 140), (140, 224), (224, 112), (112, 224))}
FIRST_SEED = 500_000_000  # training images have seeds from 1 000 000 000 on


def one_of_each_kind(
    images: int, first_seed: int = FIRST_SEED, sizes: Sequence[tuple[int, int]] = SIZES
) -> Iterator[tuple[World, Question]]:
    """Yield a question of every kind that fits from each of `images` scenes and as many screens, `sizes` in turn."""
    for number in range(images):
        for draw in (scene, screen):
            world = draw(first_seed + number, sizes[number % len(sizes)], questions=40)
            first: dict[str, Question] = {}
            for question in world.questions:
                first.setdefault(question.kind, question)
            yield from ((world, question) for question in first.values())

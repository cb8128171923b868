"""Images with known objects, to be described, and where a caption names those objects."""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from PIL import Image

from ..media import load_image, readable
from ..metrics.lexicon import Lexicon, merge, singular, tokens

Shown = tuple[Image.Image, str, Sequence[str]]  # image, question, canonical names of what is there


@dataclass(frozen=True)
class Described:
    """`count` images; `lexicon` spells their objects, `data` says in words what they are."""

    lexicon: Lexicon
    count: int
    data: str
    show: Callable[[int], Shown]


def habits(model_type: str, count: int, first_seed: int) -> Described:
    """Return generated scenes in which habit and image disagree, of every degradation, as often as in evaluations."""
    from ..evaluation.formats.worlds import COMPANY
    from ..metrics import phrases
    from ..synthetic.asked import SIZES, SIZES_OF
    from ..synthetic.hallucination import DEGRADATIONS, DESCRIBE, classes, hallucination

    sizes = SIZES_OF.get(model_type, SIZES)

    def show(number: int) -> Shown:
        turn, kind = divmod(number, len(DEGRADATIONS))
        size = sizes[turn % len(sizes)]
        world = hallucination(first_seed + number, size, degradation=DEGRADATIONS[kind], company=COMPANY)
        return world.image, DESCRIBE, world.classes

    lexicon = phrases(classes(), "colours and shapes of the generated images")
    return Described(lexicon, count, "generated scenes of habit", show)


def annotated(files: Sequence[str], images: str | None, synonyms: str | None, count: int) -> Described:
    """Return at most `count` images of a data set with known objects, in a seeded order.

    The data is read as `vlmopt eval` reads it.

    Raises:
        ValueError, OSError: it cannot be read, or holds no captions of images whose objects are known.
    """
    from ..evaluation.data import Source
    from ..evaluation.formats import worlds
    from ..evaluation.loading import load_data

    if any(map(worlds.is_name, files)):
        raise ValueError(f"--data {' '.join(files)}: generated images are described without --data")
    data = load_data(Source(data=files, run=Path(), images=images, synonyms=synonyms))
    known = [s for s in data.samples if s.kind == "caption" and s.objects is not None]
    samples = [s for s in known if s.images and s.error is None]
    if not samples or data.lexicon is None:
        raise ValueError(
            f"--data {' '.join(files)} ({data.format}) holds no images to describe whose objects are known; give "
            "annotations of COCO, or leave --data out for generated images"
        )
    random.Random("captions").shuffle(samples)
    good, bad = readable((Path(s.images[0]) for s in samples), count)
    if not good:
        raise ValueError(
            f"none of the {len(bad)} images of --data {' '.join(files)} can be read: {next(iter(bad.values()))}"
        )
    samples = [s for s in samples if Path(s.images[0]) not in bad]

    def show(number: int) -> Shown:
        sample = samples[number]
        question = data.prompt.replace("{question}", sample.question)
        return load_image(sample.images[0]).image, question, sample.objects or ()

    lost = f" ({len(bad)} more could not be read)" if bad else ""
    return Described(data.lexicon, min(count, len(samples)), f"images of {' '.join(files)}{lost}", show)


def mentions(caption: str, lexicon: Lexicon) -> list[tuple[int, str]]:
    """Return what `lexicon.mentions` finds, each with the place of its first character in the lower-case caption."""
    text, found = caption.lower(), tokens(caption)
    places: list[int] = []
    at = 0
    for word in found:
        places.append(text.index(word, at))
        at = places[-1] + len(word)
    words = tuple(map(singular, found))
    merged = merge(words, lexicon.pairs)
    dropped = {word for word, other in lexicon.exclusions.items() if other in merged}
    out, at = [], 0
    for word in merged:
        if word in lexicon.names and word not in dropped:
            out.append((places[at], lexicon.names[word]))
        at += 2 if at + 1 < len(words) and (words[at], words[at + 1]) in lexicon.pairs else 1
    return out


def first_token(ids: Sequence[int], caption: str, place: int, decode: Callable[[Sequence[int]], str]) -> int:
    """Return the number of the token that holds the character at `place` of the lower-case caption."""
    text = caption.lower()

    def settled(count: int) -> int:  # the end may still change, e.g. half a character
        pairs = zip(text, decode(ids[:count]).lower(), strict=False)
        return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))

    return bisect_right(range(len(ids) + 1), place, key=settled) - 1

"""Divide images between search and hold-out: in the same mixture, all questions and copies of an image on one side."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..evaluation.data import Sample

Image = tuple[Sample, ...]  # all questions about one image, or about copies of it
SHARE = 3  # one image of so many goes to the search part


@dataclass(frozen=True)
class Split:
    """The two parts. A hold-out that is looked at to choose a policy no longer confirms anything."""

    search: tuple[Image, ...]
    holdout: tuple[Image, ...]

    @property
    def digest(self) -> str:
        """A hash of which sample lies where."""
        told = [[[sample.id for sample in image] for image in part] for part in (self.search, self.holdout)]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]


def split(samples: Sequence[Sample], run: Path, seed: int, most: int) -> Split:
    """Split samples that can be asked.

    Args:
        run: images may lie relative to it.
        seed: of the order within every kind and category.
        most: images of the search part at most; it has a third of all at most.

    Raises:
        ValueError: fewer than two images can be asked about.
    """
    images = images_of([sample for sample in samples if sample.error is None], run)
    if len(images) < 2:
        raise ValueError(f"{len(images)} images can be asked about: a search and a hold-out part need one each")
    draw, count = random.Random(f"split/{seed}"), min(most, -(-len(images) // SHARE))
    # One kind and category behind the other, so that every one gives its share to both parts.
    row = [image for stratum in strata(images).values() for image in draw.sample(stratum, len(stratum))]
    places = range(len(row))
    chosen = [place * count // len(row) < (place + 1) * count // len(row) for place in places]
    search, holdout = ([row[place] for place in places if chosen[place] is side] for side in (True, False))
    return Split(mixed(search, draw), mixed(holdout, draw))


def images_of(samples: Sequence[Sample], run: Path) -> list[Image]:
    """Group samples by what they show: the same name, or files with the same bytes, directly or through others."""
    known: dict[str, str] = {}
    leader: dict[str, str] = {}  # name or hash -> one that it belongs together with

    def top(key: str) -> str:
        while (above := leader.setdefault(key, key)) != key:
            key = above
        return key

    for sample in samples:
        keys = [f"name {sample.picture or sample.id}"]
        for file in (*sample.images, *sample.videos):
            if file not in known:
                known[file] = hashlib.sha256((run / file).read_bytes()).hexdigest()
            keys.append(known[file])
        for key in keys[1:]:
            leader[top(key)] = top(keys[0])
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(top(f"name {sample.picture or sample.id}"), []).append(sample)
    return [tuple(group) for group in groups.values()]


def strata(images: Sequence[Image]) -> dict[tuple[str, str], list[Image]]:
    """Group images by kind and category of their first question."""
    found: dict[tuple[str, str], list[Image]] = {}
    for image in sorted(images, key=lambda image: (image[0].kind, image[0].category)):
        found.setdefault((image[0].kind, image[0].category), []).append(image)
    return found


def mixed(images: Sequence[Image], draw: random.Random) -> tuple[Image, ...]:
    """Order images so that every prefix has about the same mixture of kinds and categories."""
    placed: list[tuple[float, str, Image]] = []
    for stratum in strata(images).values():
        shift = draw.random()
        placed += [((place + shift) / len(stratum), image[0].id, image) for place, image in enumerate(stratum)]
    return tuple(image for _, _, image in sorted(placed, key=lambda entry: entry[:2]))

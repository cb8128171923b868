"""Read data sets, check them as a whole, and choose from them by a seed."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice, zip_longest

from ..atomic import atomic_write
from .data import Data, Sample, Source
from .formats import reader

SHOWN = 3  # examples in a message


def load_data(source: Source) -> Data:
    """Read data, and refuse what cannot be right as a whole; single bad samples keep their place with an `error`.

    Raises:
        ValueError: no such data, unknown format or fields, missing fields, ids given twice, a box convention that does
            not fit the images, no image found at all.
        OSError: a file cannot be read.
    """
    if source.limit is not None and source.limit < 1:
        raise ValueError(f"--limit must be 1 or more, got {source.limit}")
    data = reader(source)(source)
    if not data.samples:
        raise ValueError(f"{' '.join(source.data)} holds no samples")
    check_ids(data.samples)
    samples = chosen(data.samples, source.limit, source.seed)
    unpack(samples, source)
    return check_files(replace(data, samples=tuple(samples)), source)


def unpack(samples: Sequence[Sample], source: Source) -> None:
    """Write the images that lie inside of the data, each once, unless an earlier run did."""
    for name in dict.fromkeys(name for sample in samples for name in sample.images if name in source.packed):
        path = source.run / name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as fresh:
                fresh.write_bytes(source.packed[name]())


def chosen(samples: Sequence[Sample], limit: int | None, seed: int) -> Sequence[Sample]:
    """Choose `limit` samples by a seed, in their order, spread over images.

    A second question about an image comes only when every image has its first.
    """
    if limit is None or limit >= len(samples):
        return samples
    draw = random.Random(f"limit/{seed}")
    places: dict[str, list[int]] = {}
    for place in draw.sample(range(len(samples)), len(samples)):
        places.setdefault(samples[place].picture or samples[place].id, []).append(place)
    rounds = zip_longest(*places.values())  # images in the order of their first question drawn
    taken = islice((place for turn in rounds for place in turn if place is not None), limit)
    return [samples[place] for place in sorted(taken)]


def check_ids(samples: Sequence[Sample]) -> None:
    twice = [name for name, count in Counter(sample.id for sample in samples).items() if count > 1]
    if twice:
        raise ValueError(
            f"{len(twice)} ids are given more than once ({', '.join(map(repr, twice[:SHOWN]))}"
            f"{', ...' if len(twice) > SHOWN else ''}): every sample needs an id of its own"
        )


def check_files(data: Data, source: Source) -> Data:
    """Mark samples whose images are missing; none at all means that the directory is wrong."""
    known: dict[str, bool] = {}

    def missing(sample: Sample) -> list[str]:
        files = [*sample.images, *sample.videos]  # names may be too long for Path
        return [file for file in files if not known.setdefault(file, os.path.isfile(source.run / file))]

    lost = {sample.id: missing(sample) for sample in data.samples}
    bad = [files[0] for files in lost.values() if files]
    if not bad:
        return data
    if not any(known.values()):
        raise ValueError(f"none of the images is there, e.g. {bad[0]}: name their directory with --images")
    samples = [
        replace(sample, error=f"image not found: {lost[sample.id][0]}") if lost[sample.id] else sample
        for sample in data.samples
    ]
    note = f"{len(bad)} of {len(samples)} samples miss their image, e.g. {bad[0]}: recorded as errors"
    return replace(data, samples=tuple(samples), notes=(*data.notes, note))

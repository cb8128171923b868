"""RefCOCO, RefCOCO+ and RefCOCOg (arXiv 1608.00272, 1511.02283): which box do these words mean?"""

from __future__ import annotations

from collections.abc import Sequence

from ..boxes import bbox, convention, with_boxes
from ..data import Data, Sample, Source
from .files import Entry, files, load, need

NAME = "refcoco"
HELP = "JSON lines with image, sent, bbox (and --boxes)"


def recognises(entries: Sequence[Entry]) -> bool:
    return bool(entries) and {"image", "sent", "bbox"} <= set(entries[0][1])


def read(source: Source) -> Data:
    """Read expressions with boxes in the convention of `source.boxes`, `xyxy` in the files of Qwen-VL and InternVL.

    An answer is right where its box and the true one have an intersection over union of one half or more. The category
    is the file's name, e.g. refcoco_testA.

    Raises:
        ValueError: no convention, one that cannot be right, or missing fields.
    """
    samples: list[Sample] = []
    raw: list[list[float]] = []
    for path in files(source):
        kind = convention(source.boxes, str(path))
        for number, (where, entry) in enumerate(load(path), start=1):
            raw.append(bbox(entry, where))
            image = need(entry, "image", where)
            samples.append(
                Sample(
                    id=f"{path.stem}/{number}",
                    question=need(entry, "sent", where),
                    kind="box",
                    images=(source.locate(image, path),),
                    category=path.stem,
                    picture=image,
                )
            )
    return Data(format=NAME, samples=tuple(with_boxes(samples, raw, kind, source.run)))

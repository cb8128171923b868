"""ScreenSpot (arXiv 2401.10935), ScreenSpot-v2 (2410.23218) and ScreenSpot-Pro (2504.07981): click what is meant."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..boxes import bbox, convention, with_boxes
from ..data import Data, Sample, Source
from .files import Entry, files, load, need, rest

NAME = "screenspot"
HELP = "JSON with img_filename, bbox, instruction (and --boxes)"
PLATFORMS = ("mobile", "desktop", "web")  # the files of ScreenSpot and -v2: screenspot_mobile.json, ...
USED = ("id", "img_filename", "bbox", "instruction", "platform")


def recognises(entries: Sequence[Entry]) -> bool:
    return bool(entries) and {"img_filename", "bbox", "instruction"} <= set(entries[0][1])


def read(source: Source) -> Data:
    """Read samples with boxes in the convention of `source.boxes`; categories are platform/type, e.g. mobile/icon.

    The type is `data_type` (ScreenSpot) or `ui_type` (-Pro), the platform the field of that name, or else told by the
    name of the file.

    Raises:
        ValueError: no convention, one that cannot be right, or missing fields.
    """
    samples: list[Sample] = []
    raw: list[list[float]] = []
    for path in files(source):
        kind = convention(source.boxes, str(path))
        for number, (where, entry) in enumerate(load(path)):
            raw.append(bbox(entry, where))
            image = need(entry, "img_filename", where)
            platform, sort = platform_of(entry, path), str(entry.get("data_type") or entry.get("ui_type") or "")
            samples.append(
                Sample(
                    id=str(entry.get("id") or f"{path.stem}/{number}"),
                    question=need(entry, "instruction", where),
                    kind="click",
                    images=(source.locate(image, path),),
                    category=f"{platform}/{sort}",
                    picture=image,
                    extra={
                        **rest(entry, USED),
                        "platform": platform,
                        "data_type": sort,
                        "groups": [f"platform {platform}", f"type {sort}"],
                    },
                )
            )
    return Data(format=NAME, samples=tuple(with_boxes(samples, raw, kind, source.run)))


def platform_of(entry: dict[str, Any], path: Path) -> str:
    named = next((name for name in PLATFORMS if name in path.stem.lower()), path.stem)
    return str(entry.get("platform") or named)

"""Boxes in the conventions of data sets, and whether a convention can be right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from ..paths import check_file
from .data import Box, Sample

# Corners or corner and size, in pixels or as fractions of the image.
CONVENTIONS = ("xyxy", "xywh", "xyxy-unit", "xywh-unit")
KNOWN = "ScreenSpot and ScreenSpot-v2: xywh; ScreenSpot-Pro: xyxy; copies on the Hub often: xyxy-unit"
SLACK = 1.0  # pixels that an annotation may stick out
TURNED = (5, 6, 7, 8)  # EXIF orientations that swap width and height
ORIENTATION = 0x0112


def convention(name: str | None, where: str) -> str:
    """Return the convention that the user named.

    Raises:
        ValueError: none, or an unknown one.
    """
    if name not in CONVENTIONS:
        said = "say how" if name is None else f"--boxes {name!r} is unknown; say how"
        raise ValueError(f"{where} has boxes: {said} they are written, --boxes {' | '.join(CONVENTIONS)} ({KNOWN})")
    return name


def four_numbers(value: Any) -> list[float] | None:
    """Return the numbers of a raw box; None if it is not four numbers."""
    if isinstance(value, (list, tuple)) and len(value) == 4 and all(type(v) in (int, float) for v in value):
        return [float(v) for v in value]
    return None


def bbox(entry: Mapping[str, Any], where: str) -> list[float]:
    """Return the raw box of an entry that has to have one.

    Raises:
        ValueError: it is not four numbers; names `where`.
    """
    numbers = four_numbers(entry.get("bbox"))
    if numbers is None:
        raise ValueError(f"{where}: bbox is {entry.get('bbox')!r}, expected four numbers")
    return numbers


def corners(raw: Sequence[float], kind: str, size: tuple[int, int]) -> Box:
    """Return x0, y0, x1, y1 in pixels of an image of `size` (width, height)."""
    x, y, a, b = raw
    if kind.endswith("unit"):
        x, y, a, b = x * size[0], y * size[1], a * size[0], b * size[1]
    return (x, y, x + a, y + b) if kind.startswith("xywh") else (x, y, a, b)


def inside(box: Box, size: tuple[int, int]) -> bool:
    """Return whether a box has at least one pixel and lies in the image.

    Fractions taken for pixels would be smaller.
    """
    x0, y0, x1, y1 = box
    apart = x1 - x0 >= 1 and y1 - y0 >= 1
    return apart and min(x0, y0) >= -SLACK and x1 <= size[0] + SLACK and y1 <= size[1] + SLACK


def image_size(path: str | Path) -> tuple[int, int] | None:
    """Return (width, height) of an image as seen upright, from the head of the file; None where it cannot be read."""
    try:
        with Image.open(check_file(path, "image")) as image:
            turned = image.getexif().get(ORIENTATION) in TURNED
            return image.size[::-1] if turned else image.size
    except Exception:  # whatever the decoder raised, the runner meets it again and records why
        return None


def with_boxes(samples: Sequence[Sample], raw: Sequence[Sequence[float] | None], kind: str, run: Path) -> list[Sample]:
    """Return samples with their boxes in pixels; those whose box misses the image get an `error`.

    Args:
        samples: with one image each where there is a box.
        raw: the boxes as written, None where there is none.

    Raises:
        ValueError: another convention fits more of the images.
    """
    sizes = [image_size(run / s.images[0]) if box and s.images else None for s, box in zip(samples, raw, strict=True)]
    known = [(box, size) for box, size in zip(raw, sizes, strict=True) if box and size]
    fits = {name: sum(inside(corners(box, name, size), size) for box, size in known) for name in CONVENTIONS}
    best = max(CONVENTIONS, key=lambda name: (fits[name], name == kind))
    if fits[best] > fits[kind]:
        box, (width, height) = next((b, s) for b, s in known if not inside(corners(b, kind, s), s))
        raise ValueError(
            f"--boxes {kind} cannot be right: {len(known) - fits[kind]} of {len(known)} boxes would be empty or reach "
            f"outside their images (e.g. {list(box)} in {width}x{height} pixels), with --boxes {best} "
            f"{len(known) - fits[best]}"
        )
    if known and not fits[kind]:
        box, (width, height) = known[0]
        raise ValueError(
            f"none of the {len(known)} boxes lies in its image, whichever way they are read (e.g. {list(box)} in "
            f"{width}x{height} pixels): they may be of images of another size, or of a scale such as 0 to 1000"
        )
    told = [replace(s, written=(kind, *box)) if box else s for s, box in zip(samples, raw, strict=True)]
    return [_with_box(*one, kind) for one in zip(told, raw, sizes, strict=True)]


def _with_box(sample: Sample, raw: Sequence[float] | None, size: tuple[int, int] | None, kind: str) -> Sample:
    if raw is None or size is None:  # without a size the image is missing or damaged, and nothing will be asked
        return sample
    box = corners(raw, kind, size)
    if box[0] < box[2] and box[1] < box[3] and box[0] < size[0] and box[1] < size[1] and min(box[2:]) > 0:
        return replace(sample, box=box)
    return replace(sample, error=f"the box {list(raw)} ({kind}) misses the image of {size[0]}x{size[1]} pixels")

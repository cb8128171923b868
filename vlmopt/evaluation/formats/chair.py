"""CHAIR on COCO: captions against annotation files that the user has (arXiv 1809.02156)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...core import parse
from ...metrics import coco_lexicon, load_synonyms
from ..data import Data, Sample, Source
from .files import Entry, files

NAME = "chair"
HELP = "COCO annotation files (instances_*.json captions_*.json)"
QUESTION = "Please describe this image in detail."


def recognises(entries: Sequence[Entry]) -> bool:
    return len(entries) == 1 and isinstance(entries[0][1].get("images"), list)


def read(source: Source) -> Data:
    """Read one caption for each image of the first file; the truth comes from all files.

    An object is there if an instance annotation of any file says so, or a reference caption names it.

    Raises:
        ValueError: not the structure of COCO, or a category that the lexicon does not know.
    """
    lexicon = load_synonyms(source.synonyms) if source.synonyms else coco_lexicon()
    known = set(lexicon.names.values())
    entries: list[dict[str, Any]] = []
    truth: dict[int, dict[str, None]] = {}  # a set that keeps its order
    described: set[int] = set()
    paths = files(source)
    for path in paths:
        coco = _coco(path)
        entries = entries or coco["images"]
        names = {c["id"]: c["name"] for c in coco.get("categories", ())}
        if strange := sorted(set(names.values()) - known):
            raise ValueError(
                f"{path}: the lexicon ({lexicon.source}) does not know the categories {strange[:5]}; CHAIR is defined "
                "on COCO's 80 objects, give a table of your own with --synonyms"
            )
        for note in coco["annotations"]:
            there = truth.setdefault(note["image_id"], {})
            if "caption" in note:
                described.add(note["image_id"])
                there |= dict.fromkeys(lexicon.mentions(note["caption"]))
            else:
                there[names[note["category_id"]]] = None
    samples = tuple(
        Sample(
            id=str(entry["id"]),
            question=QUESTION,
            kind="caption",
            images=(source.locate(entry["file_name"], paths[0]),),
            objects=tuple(truth.get(entry["id"], {})),
            picture=str(entry["id"]),
        )
        for entry in entries
    )
    bare = sum(entry["id"] not in described for entry in entries)
    note = f"{bare} of {len(entries)} images have no reference captions, whose objects CHAIR counts as there too"
    return Data(format=NAME, samples=samples, lexicon=lexicon, notes=(note,) if bare else ())


def _coco(path: Path) -> dict[str, Any]:
    try:
        coco = parse(path.read_text(encoding="utf-8"), float)
        images, annotations = coco["images"], coco["annotations"]
        whole = all({"id", "file_name"} <= set(one) for one in images) and all(
            "image_id" in one and (isinstance(one["caption"], str) if "caption" in one else "category_id" in one)
            for one in annotations
        )
        if whole and {one["category_id"] for one in annotations if "caption" not in one} <= {
            one["id"] for one in coco.get("categories", ()) if "name" in one
        }:
            return dict(coco)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a COCO annotation file: {type(error).__name__}: {error}") from error
    raise ValueError(
        f"{path} is not a COCO annotation file: images need id and file_name, annotations image_id and either a "
        "caption (text) or a category_id that is listed under categories"
    )

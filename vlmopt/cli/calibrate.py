"""`vlmopt calibrate`: measure on the user's images what pruning and corrections must know of a model."""

from __future__ import annotations

import argparse
import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from vlmopt.pruning import ScoreSelector

from ..atomic import atomic_write
from ..calibration import Calibration, IATCollector, default_hosts, key
from ..calibration.captions import Described, annotated, habits
from ..calibration.sinks import readable_layers
from ..calibration.table import table
from ..choices import IAT, PARTS
from ..loading import Loaded, check_device, load
from ..media import load_image, readable
from ..methods import find
from ..prompt import chat, image_prompt
from ..runtime.structure import structure_of

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
FIRST_SEED = 400_000_000  # of generated images; apart from those of training, tests and measurements
SAVE_EVERY = 20  # samples
BATCH = 8  # captions written together, and saved


def execute(options: argparse.Namespace) -> None:
    """Calibrate; go on where an interrupted run of the same command stopped."""
    files = files_of(options)
    hosts = [host(text) for text in options.host]
    check_device(options.device)
    files, lost = sound(files, options.samples) if files else ([], 0)
    loaded = load(options.model, device=options.device, dtype=options.dtype)
    hosts = hosts or default_hosts(len(structure_of(loaded.model).layers))
    parts = options.only or able(loaded)
    part = Path(f"{options.out}.part")
    request = {
        "model": options.model,
        "dtype": options.dtype,
        "images": options.images,
        "question": options.question,
        "hosts": [key(h) for h in hosts],
        "parts": sorted(parts),
    }
    shown = described_images(options, loaded) if IAT in parts else None
    request |= {"data": options.data, "synonyms": options.synonyms} if shown else {}
    state = stored(part, request) or {}
    iat = IATCollector(loaded.model, loaded.processor.tokenizer, shown.lexicon, state.get(IAT)) if shown else None
    run = Calibration(loaded.model, hosts, [name for name in parts if name != IAT], state, iat)
    first, total = run.plan(min(options.samples, len(files)) if files else options.samples)
    count = first + total + (shown.count if shown else 0)
    if run.begun:
        print(f"going on after {run.begun} images ({part})")
    bar = tqdm(total=count, initial=min(run.begun, count), desc="calibrating", unit="image")
    for show, start, end in ((run.look, run.looked, first), (run.add, run.seen, total)):
        for image, question in asked(files, loaded, options, start, end):
            show(image_prompt(loaded.processor, question, [image]))
            bar.update()
            if (run.looked + run.seen) % SAVE_EVERY == 0:
                save_state(part, request, run)
    for done in describe(iat, shown, loaded.processor) if iat and shown else ():
        bar.update(done)
        save_state(part, request, run)
    bar.close()
    save_state(part, request, run)
    profile = run.profile(loaded.name, described(options, run, shown, lost))
    profile.save(options.out)
    part.unlink(missing_ok=True)
    print(table(profile, loaded.name))
    print(f"wrote {options.out}")


def files_of(options: argparse.Namespace) -> list[Path]:
    """Return the images of a directory, none where they are generated."""
    if set(options.only) == {IAT}:
        return []
    return [] if options.images == "worlds" else images_in(Path(options.images))


def described_images(options: argparse.Namespace, loaded: Loaded) -> Described:
    """Return what the part iat is shown."""
    if not options.data:
        if options.synonyms:
            raise ValueError("--synonyms is for --data; the names in generated images are known")
        return habits(loaded.model.config.model_type, options.samples, FIRST_SEED)
    images = None if options.images == "worlds" else options.images
    return annotated(options.data, images, options.synonyms, options.samples)


def describe(iat: IATCollector, shown: Described, processor: Any) -> Iterator[int]:
    """Describe images in batches; yield how many captions each batch wrote."""
    for start in range(iat.done, shown.count, BATCH):
        images, questions, truths = zip(*map(shown.show, range(start, min(start + BATCH, shown.count))), strict=True)
        text = [chat(processor, "image", 1, question) for question in questions]
        pixels = [[image] for image in images]
        inputs = processor(text=text, images=pixels, return_tensors="pt", padding=True, padding_side="left")
        iat.add(inputs, truths)
        yield len(text)


def able(loaded: Loaded) -> Collection[str]:
    """Return every part, or what can be measured where attention cannot be read."""
    try:
        readable_layers(loaded.model)
    except ValueError as error:
        print(f"note: sinks and heads are not measured: {error}")
        return ("debias",)
    return PARTS


def host(text: str) -> ScoreSelector:
    """Read a method from "name:layer"."""
    name, _, layer = text.partition(":")
    cls = find(name)
    if not (issubclass(cls, ScoreSelector) and cls.trend):
        raise ValueError(f"--host {text!r}: {name} does not rank by attention inside the LLM, so it has no trend")
    where: dict[str, Any] = {"layers": (int(layer),)} if hasattr(cls, "layers") else {"layer": int(layer)}
    return cls(keep_ratio=0.5, **where)


def images_in(directory: Path) -> list[Path]:
    """Return the image files below a directory, sorted."""
    if not directory.is_dir():
        raise ValueError(f"--images {directory} is not a directory; give one, or the word worlds")
    files = sorted(path for path in directory.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not files:
        raise ValueError(f"no images ({', '.join(SUFFIXES)}) below {directory}")
    return files


def sound(files: list[Path], most: int) -> tuple[list[Path], int]:
    """Return the first `most` images that can be read, and how many files before them cannot; print the latter.

    Raises:
        ValueError: none can.
    """
    good, bad = readable(files, most)
    first = next(iter(bad.values()), "")
    if not good:
        raise ValueError(f"none of the {len(bad)} images can be read: {first}")
    if bad:
        print(f"note: {len(bad)} of {len(good) + len(bad)} images are left out, the first one because: {first}")
    return good, len(bad)


def asked(
    files: list[Path], loaded: Loaded, options: argparse.Namespace, start: int, total: int
) -> Iterator[tuple[Image.Image, str]]:
    """Yield images and questions from number `start` up to `total`."""
    if files:
        for path in files[start:total]:
            yield load_image(path).image, options.question
        return
    from ..synthetic import scene, screen
    from ..synthetic.asked import SIZES, SIZES_OF

    sizes = SIZES_OF.get(loaded.model.config.model_type, SIZES)
    for number in range(start, total):
        draw = scene if number % 2 else screen
        world = draw(FIRST_SEED + number, sizes[number // 2 % len(sizes)])
        yield world.image, world.questions[0].text


def stored(part: Path, request: dict[str, Any]) -> dict[str, Any] | None:
    """Return what an interrupted run left, if it was the same run."""
    if not part.exists():
        return None
    try:
        state = json.loads(part.read_text(encoding="utf-8"))
        same = state["request"] == request
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{part} is damaged ({error}); delete it to start anew") from error
    if not same:
        raise ValueError(f"{part} was left by another run ({state['request']}); delete it, or choose another --out")
    return dict(state)


def save_state(part: Path, request: dict[str, Any], run: Calibration) -> None:
    part.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(part) as fresh:
        fresh.write_text(json.dumps({"request": request, **run.state()}), encoding="utf-8")


def described(options: argparse.Namespace, run: Calibration, shown: Described | None, lost: int) -> str:
    count, words = max(run.looked, run.seen), []
    if count and options.images == "worlds":
        words.append(f"{count} generated scenes and screens, each with a question of its own")
    elif count:
        left_out = f" ({lost} more could not be read)" if lost else ""
        words.append(f"{count} images of {options.images}{left_out}, question {options.question!r}")
    if run.iat and shown:
        words.append(f"{run.iat.done} captions of {shown.data}")
    return "; ".join(words)

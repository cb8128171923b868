"""`vlmopt calibrate`: measure the positional trend of attention scores on one's own pictures."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from pruning import ScoreSelector

from ..calibration import Collector, Profile, default_hosts, key
from ..loading import DTYPES, Loaded, check_device, check_name, load
from ..media import load_image
from ..methods import find
from ..prompt import image_prompt
from ..seam.discover import discover

NAME = "calibrate"
HELP = "measure the positional trend of attention scores, for debiased pruning"
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
FIRST_SEED = 400_000_000  # of generated pictures; apart from those of training, tests and measurements
SAVE_EVERY = 20  # samples


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="tiny-qwen", help="bundled name, directory, or Hub id (default tiny-qwen)")
    parser.add_argument("--images", required=True, metavar="DIR", help="directory of pictures, or: worlds (generated)")
    parser.add_argument("--out", required=True, metavar="FILE", help="the profile to write, e.g. profile.json")
    parser.add_argument(
        "--host", action="append", default=[], metavar="NAME:LAYER",
        help="method and the layer before which it cuts; may be repeated (default: all at their usual layers)",
    )  # fmt: skip
    parser.add_argument("--samples", type=int, default=200, metavar="N", help="pictures at most (default 200)")
    parser.add_argument("--question", default="Describe the image.", help="asked of every picture of a directory")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    parser.add_argument("--dtype", default="auto", choices=DTYPES)


def execute(options: argparse.Namespace) -> None:
    """Runs again from where an interrupted run of the same command stopped."""
    if options.samples < 1:
        raise ValueError(f"--samples must be 1 or more, got {options.samples}")
    files = [] if options.images == "worlds" else pictures_in(Path(options.images))
    hosts = [host(text) for text in options.host]
    check_device(options.device)
    check_name(options.model)
    loaded = load(options.model, device=options.device, dtype=options.dtype)
    hosts = hosts or default_hosts(len(discover(loaded.model).layers))
    part = Path(f"{options.out}.part")
    request = {
        "model": options.model,
        "images": options.images,
        "question": options.question,
        "hosts": [key(h) for h in hosts],
    }
    state = stored(part, request)
    collector = Collector(loaded.model, hosts, state)
    seen = start = int(state["seen"]) if state else 0
    total = options.samples if options.images == "worlds" else min(options.samples, len(files))
    if start:
        print(f"going on after {start} pictures ({part})")
    bar = tqdm(total=total, initial=min(start, total), desc="calibrating", unit="picture")
    for image, question in pictures(files, loaded, options, start, total):
        collector.add(image_prompt(loaded.processor, question, [image]))
        seen += 1
        bar.update()
        if seen % SAVE_EVERY == 0:
            save_state(part, request, seen, collector)
    bar.close()
    save_state(part, request, seen, collector)
    trends = tuple(collector.profiles(loaded.name))
    profile = Profile(trends[0].model, described(options, collector.done), trends)
    profile.save(options.out)
    part.unlink(missing_ok=True)
    print(table(profile, loaded))
    print(f"wrote {options.out}")


def host(text: str) -> ScoreSelector:
    """A method from "name:layer"."""
    name, _, layer = text.partition(":")
    if not layer.isdecimal():
        raise ValueError(f"--host {text!r} must be NAME:LAYER, e.g. fastv:2")
    cls = find(name)
    if not (issubclass(cls, ScoreSelector) and cls.trend):
        raise ValueError(f"--host {text!r}: {name} does not rank by attention inside the LLM, so it has no trend")
    where: dict[str, Any] = {"layers": (int(layer),)} if hasattr(cls, "layers") else {"layer": int(layer)}
    return cls(keep_ratio=0.5, **where)


def pictures_in(directory: Path) -> list[Path]:
    """Picture files below a directory, sorted."""
    if not directory.is_dir():
        raise ValueError(f"--images {directory} is no directory; give one, or the word worlds")
    files = sorted(path for path in directory.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not files:
        raise ValueError(f"no pictures ({', '.join(SUFFIXES)}) below {directory}")
    return files


def pictures(
    files: list[Path], loaded: Loaded, options: argparse.Namespace, start: int, total: int
) -> Iterator[tuple[Image.Image, str]]:
    """Picture and question number `start` up to `total`."""
    if files:
        for path in files[start:total]:
            yield load_image(path).image, options.question
        return
    from ..training.evaluate import SIZES, SIZES_OF
    from ..worlds import scene, screen

    sizes = SIZES_OF.get(loaded.model.config.model_type, SIZES)
    for number in range(start, total):
        draw = scene if number % 2 else screen
        world = draw(FIRST_SEED + number, sizes[number // 2 % len(sizes)])
        yield world.image, world.questions[0].text


def stored(part: Path, request: dict[str, Any]) -> dict[str, Any] | None:
    """What an interrupted run left, if it was the same run."""
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


def save_state(part: Path, request: dict[str, Any], seen: int, collector: Collector) -> None:
    """Write to a neighbour first, so that a kill leaves a whole file."""
    part.parent.mkdir(parents=True, exist_ok=True)
    fresh = part.with_suffix(".new")
    fresh.write_text(json.dumps({"request": request, "seen": seen, **collector.state()}), encoding="utf-8")
    fresh.replace(part)


def described(options: argparse.Namespace, samples: int) -> str:
    if options.images == "worlds":
        return f"{samples} generated scenes and screens, each with a question of its own"
    return f"{samples} pictures of {options.images}, question {options.question!r}"


def table(profile: Profile, loaded: Loaded) -> str:
    """sigma > 0: late places (below, right, later frames) get more attention; exp(sigma) times as much at the end."""
    lines = [f"{loaded.name}: {profile.data}", f"{'host':<14} {'layer':>5} {'sigma':>7} {'  t, y, x':<22} samples"]
    raster = [p for p in profile.debias if p.axes == "raster"]
    axes = {(p.host, p.layer): p.sigma for p in profile.debias if p.axes == "thw"}
    for p in raster:
        parts = ", ".join(f"{value:+.2f}" for value in axes[p.host, p.layer])
        lines.append(f"{p.host:<14} {p.layer:>5} {p.sigma[0]:>+7.3f}   {parts:<20} {p.samples}")
    return "\n".join(lines)

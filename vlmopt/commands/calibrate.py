"""`vlmopt calibrate`: measure on one's own pictures what pruning and corrections must know of a model."""

from __future__ import annotations

import argparse
import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from attention_fix import HeadProfile, SinkProfile
from pruning import ScoreSelector

from ..calibration import PARTS, Calibration, Profile, default_hosts, key
from ..calibration.sinks import readable_layers
from ..loading import DTYPES, Loaded, check_device, check_name, load
from ..media import load_image
from ..methods import find
from ..prompt import image_prompt
from ..seam.discover import discover

NAME = "calibrate"
HELP = "measure trends of attention, attention sinks and heads, for debiased pruning and corrections"
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
    parser.add_argument(
        "--only", action="append", default=[], choices=PARTS,
        help="measure this part; may be repeated (default: all; heads takes sinks along)",
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
    if hosts and options.only and "debias" not in options.only:
        raise ValueError("--host names what --only debias measures; leave it out, or add --only debias")
    check_device(options.device)
    check_name(options.model)
    loaded = load(options.model, device=options.device, dtype=options.dtype)
    hosts = hosts or default_hosts(len(discover(loaded.model).layers))
    parts = options.only or able(loaded)
    part = Path(f"{options.out}.part")
    request = {
        "model": options.model,
        "images": options.images,
        "question": options.question,
        "hosts": [key(h) for h in hosts],
        "parts": sorted(parts),
    }
    run = Calibration(loaded.model, hosts, parts, stored(part, request))
    first, total = run.pictures(options.samples if options.images == "worlds" else min(options.samples, len(files)))
    if begun := run.looked + run.seen:
        print(f"going on after {begun} pictures ({part})")
    bar = tqdm(total=first + total, initial=min(begun, first + total), desc="calibrating", unit="picture")
    for show, start, end in ((run.look, run.looked, first), (run.add, run.seen, total)):
        for image, question in pictures(files, loaded, options, start, end):
            show(image_prompt(loaded.processor, question, [image]))
            bar.update()
            if (run.looked + run.seen) % SAVE_EVERY == 0:
                save_state(part, request, run)
    bar.close()
    save_state(part, request, run)
    profile = run.profile(loaded.name, described(options, max(run.looked, run.seen)))
    profile.save(options.out)
    part.unlink(missing_ok=True)
    print(table(profile, loaded))
    print(f"wrote {options.out}")


def able(loaded: Loaded) -> Collection[str]:
    """Every part, or what can be measured where attention cannot be read."""
    try:
        readable_layers(loaded.model)
    except ValueError as error:
        print(f"note: sinks and heads are not measured: {error}")
        return ("debias",)
    return PARTS


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


def save_state(part: Path, request: dict[str, Any], run: Calibration) -> None:
    """Write to a neighbour first, so that a kill leaves a whole file."""
    part.parent.mkdir(parents=True, exist_ok=True)
    fresh = part.with_suffix(".new")
    fresh.write_text(json.dumps({"request": request, **run.state()}), encoding="utf-8")
    fresh.replace(part)


def described(options: argparse.Namespace, samples: int) -> str:
    if options.images == "worlds":
        return f"{samples} generated scenes and screens, each with a question of its own"
    return f"{samples} pictures of {options.images}, question {options.question!r}"


def table(profile: Profile, loaded: Loaded) -> str:
    """sigma > 0: late places (below, right, later frames) get more attention; exp(sigma) times as much at the end."""
    lines = [f"{loaded.name}: {profile.data}"]
    raster = [p for p in profile.debias if p.axes == "raster"]
    axes = {(p.host, p.layer): p.sigma for p in profile.debias if p.axes == "thw"}
    if raster:
        lines.append(f"{'host':<14} {'layer':>5} {'sigma':>7} {'  t, y, x':<22} samples")
    for p in raster:
        parts = ", ".join(f"{value:+.2f}" for value in axes[p.host, p.layer])
        lines.append(f"{p.host:<14} {p.layer:>5} {p.sigma[0]:>+7.3f}   {parts:<20} {p.samples}")
    if profile.sinks is not None:
        lines += sink_lines(profile.sinks)
    if profile.heads is not None:
        lines += head_lines(profile.heads)
    return "\n".join(lines)


def sink_lines(sinks: SinkProfile) -> list[str]:
    stats = sinks.stats
    if sinks.nothing is not None:
        text = f"sinks    none: {sinks.nothing}"
    else:
        held = [stats["per_image"][str(layer)] for layer in stats["layers"]]
        ratios = [stats["attention_ratio"][str(layer)] for layer in stats["layers"]]
        text = (
            f"sinks    dims {', '.join(map(str, sinks.dims))} of the {stats['origin']}, massive before layers "
            f"{sinks.band[0]} to {sinks.band[1] - 1} (by {stats['band_by']}), tau {sinks.tau:.1f}\n"
            f"         visual sinks before {len(held)} layers from {sinks.first_layer} on: {sum(held) / len(held):.1f} "
            f"per picture, {sum(ratios) / len(ratios):.1f} times the attention of other tokens, |cosine| "
            f"{stats['cosine']:.2f}"
        )
    return [f"{text}; {sinks.samples} pictures", *(f"warning  sinks: {doubt}" for doubt in stats["warnings"])]


def head_lines(heads: HeadProfile) -> list[str]:
    stats = heads.stats
    masses = [mass for layer in stats["layers"] for mass in heads.visual_mass[layer]]
    text = (
        f"heads    {min(masses):.2f} to {max(masses):.2f} of their attention on the picture, mean "
        f"{sum(masses) / len(masses):.2f}; {len(stats['looking'])} of {len(masses)} look at it in most rows"
    )
    out = [f"{text}; {heads.samples} pictures"]
    if (rank := stats["rank_correlation"]) is not None:
        out.append(f"         rank correlation of attention and divergence {rank:.2f}")
    if "agreement" in stats:
        same = ", ".join(f"{name} {value:.2f}" for name, value in stats["agreement"].items())
        out.append(f"         same heads in two halves of the pictures (Jaccard index): {same}")
    return out + [f"warning  heads: {doubt}" for doubt in stats["warnings"]]

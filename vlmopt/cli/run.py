"""`vlmopt run`: ask a model about an image or a video, as it is and with a policy, and show both side by side."""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ..analysis.click import click_of
from ..api import optimized
from ..calibration import Profile
from ..checkpoints import bundled
from ..frames import Video, load_video
from ..head_patterns import HeadPatterns
from ..loading import Loaded, check_device, load
from ..measure import Measurement, Spread, measure
from ..media import load_image
from ..overlay import overlay
from ..policy import Policy
from ..policy.text import summary
from ..prefill import SparsePrefill
from ..prompt import as_seen, image_prompt, placed_for, video_prompt
from ..version import __version__


@dataclass(frozen=True)
class Visuals:
    """What goes into the prompt, and the images on which the overlay is drawn."""

    images: tuple[Image.Image, ...] = ()
    video: Video | None = None
    notes: tuple[str, ...] = ()


def execute(options: argparse.Namespace) -> None:
    """Ask both ways and print a table; what the options alone can tell is refused before the model is loaded."""
    policy = check(options)
    out = Path(options.out)
    loaded_images = [load_image(path) for path in options.image]
    notes = [f"{one.source}: {note}" for one in loaded_images for note in one.notes]
    loaded = load(options.model, device=options.device, dtype=options.dtype)
    with optimized(loaded.model, policy):
        pass  # a policy that cannot work on this model is refused here, before anything is measured
    visuals = Visuals(tuple(one.image for one in loaded_images), None, tuple(notes))
    drawn = tuple(as_seen(loaded.processor, image) for image in visuals.images)
    if options.video:
        visuals = read_video(options.video, options.fps, loaded)
        drawn = visuals.images
    measured = ask(loaded, visuals, options, policy)
    answers = {name: decode(loaded, m) for name, m in measured.items()}
    if loaded.name in bundled():
        print(f"note: {loaded.name} is small and knows drawn images alone; --model takes others")
    for note in (*loaded.notes, *visuals.notes):
        print(f"note: {note}")
    print(table(options.question, loaded, answers, measured))
    out.mkdir(parents=True, exist_ok=True)
    whole = len(visuals.images) == 1 and drawn[0].size == visuals.images[0].size  # neither padded nor cropped
    click = click_of(loaded, drawn[0], answers["optimized"], options.points) if whole else None
    for path in (*draw(drawn, measured, out, click), save(out, options, loaded, visuals, answers, measured)):
        print(f"wrote {path}")


def check(options: argparse.Namespace) -> Policy:
    """Check the files and names that the options give; return the policy."""
    policy = Policy.load(options.policy)
    if options.profile:
        policy = Profile.load(options.profile).apply(policy)
    if options.patterns:
        prefill = replace(policy.prefill or SparsePrefill(), pattern=None, heads=HeadPatterns.load(options.patterns))
        policy = replace(policy, prefill=prefill)
    if options.seed is not None:
        policy = replace(policy, seed=options.seed)
    if Path(options.out).exists() and not Path(options.out).is_dir():
        raise ValueError(f"--out {options.out} is a file; give a directory")
    check_device(options.device)
    return policy


def read_video(path: str, fps: float | None, loaded: Loaded) -> Visuals:
    sizes = loaded.processor.image_processor
    video = load_video(
        path, fps=fps, patch_size=getattr(sizes, "patch_size", 14), merge_size=getattr(sizes, "merge_size", 2)
    )
    step = getattr(sizes, "temporal_patch_size", 1)
    shown = tuple(Image.fromarray(f.permute(1, 2, 0).byte().numpy()) for f in video.frames[::step])
    said = f"{len(video.indices)} frames of {path} read with {video.reader}, {video.sample_fps:.2f} per second"
    return Visuals(shown, video, (said, *video.notes))


def ask(loaded: Loaded, visuals: Visuals, options: argparse.Namespace, policy: Policy) -> dict[str, Measurement]:
    if visuals.video is not None:
        inputs = video_prompt(loaded.processor, loaded.model, options.question, visuals.video)
    else:
        inputs = image_prompt(loaded.processor, options.question, visuals.images)
    policies = {"dense": "dense", "optimized": policy}
    return measure(
        loaded.model,
        placed_for(loaded.model, inputs),
        policies,
        repeats=options.repeats,
        warmup=options.warmup,
        max_new_tokens=options.max_new_tokens,
        progress=True,
    )


def decode(loaded: Loaded, measured: Measurement) -> str:
    return str(loaded.processor.tokenizer.decode(measured.new_ids[0], skip_special_tokens=True)).strip()


def table(question: str, loaded: Loaded, answers: dict[str, str], measured: dict[str, Measurement]) -> str:
    """Write dense and optimized side by side, then what the report says."""
    both, other = (measured["dense"], measured["optimized"]), measured["optimized"]
    report, parameters = other.report, sum(p.numel() for p in loaded.model.parameters())
    lines = [
        "",
        f"model      {loaded.name}: {report.family}, {parameters / 1e6:.1f} M parameters, {report.dtype}, "
        f"{report.device}, {report.attn_implementation}",
        f"policy     {summary(report.policy)}",
        f"question   {question}",
        f"dense      {answers['dense']!r}",
        f"optimized  {answers['optimized']!r}" + (" (same)" if answers["dense"] == answers["optimized"] else ""),
        "",
        f"{'':<26} {'dense':>24} {'optimized':>24} {'ratio':>7}",
        _row("visual tokens", both, lambda m: m.visual_tokens_kept, "{:.0f}"),
        _row("visual tokens, layer mean", both, lambda m: m.report.samples[0]["layer_average"], "{:.1f}"),
        _row("vision tower, ms", both, lambda m: m.vision_ms, "{:.1f}"),
        _row("time to first token, ms", both, lambda m: m.ttft_ms, "{:.1f}"),
        _row("decode, tokens/s", both, lambda m: m.decode_tokens_per_s, "{:.1f}"),
        _row("KV cache, KiB", both, lambda m: m.report.kv_cache_bytes / 2**10, "{:.0f}"),
        _row("peak memory, MiB", both, lambda m: _mib(m.peak_memory_bytes), "{:.1f}"),
        _row("  of it for this run, MiB", both, lambda m: _mib(m.peak_memory_rise_bytes), "{:.1f}"),
        "",
        f"times: median (p20-p80); memory: {other.peak_memory_kind}",
    ]
    lines += report.applied_lines() + report.skipped_lines()
    return "\n".join(lines)


def _mib(size: int | None) -> float | None:
    return None if size is None else size / 2**20


def _row(label: str, both: Sequence[Measurement], read: Callable[[Measurement], Any], form: str) -> str:
    """Write a line of the table; None is shown as a dash."""

    def cell(value: Any) -> str:
        if value is None:
            return "-"
        if isinstance(value, Spread):
            low, high = form.format(value.p20), form.format(value.p80)
            return f"{form.format(value.median)} ({low}-{high})"
        return form.format(value)

    dense, other = map(read, both)
    before, after = (v.median if isinstance(v, Spread) else v for v in (dense, other))
    ratio = f"{after / before:.2f}" if before and after is not None else "-"
    return f"{label:<26} {cell(dense):>24} {cell(other):>24} {ratio:>7}"


def draw(
    images: Sequence[Image.Image], measured: dict[str, Measurement], out: Path, click: tuple[float, float] | None
) -> Sequence[Path]:
    """Draw overlay.png, and scores.png where a method scored; nothing for a prompt without visual tokens."""
    report = measured["optimized"].report
    maps, title, clicks = report.maps(0), summary(report.policy), [] if click is None else [click]
    if not maps:
        return ()
    paths = [out / "overlay.png"]
    overlay(images, maps, title=title, clicks=clicks).save(paths[0])
    if any(m.scores is not None for m in maps):
        paths.append(out / "scores.png")
        overlay(images, maps, title=title, heat=True, clicks=clicks).save(paths[1])
    return paths


def save(
    out: Path,
    options: argparse.Namespace,
    loaded: Loaded,
    visuals: Visuals,
    answers: dict[str, str],
    measured: dict[str, Measurement],
) -> Path:
    path = out / "result.json"
    result = {
        "vlmopt": __version__,
        "torch": torch.__version__,
        "machine": {"platform": platform.platform(), "threads": torch.get_num_threads()},
        "model": loaded.name,
        "images": options.image,
        "video": options.video,
        "question": options.question,
        "repeats": options.repeats,
        "notes": [*loaded.notes, *visuals.notes],
        "runs": {name: {"answer": answers[name], **m.to_dict()} for name, m in measured.items()},
    }
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return path

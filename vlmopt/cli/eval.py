"""`vlmopt eval`: policies compared on a data set, from the questions to a report."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..loading import DTYPES

SHOWN = ("accuracy", "f1", "yes_ratio", "anls", "chair_s", "chair_i", "chair_recall", "length")
PERCENT = frozenset(SHOWN) - {"length"}


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="tiny-qwen", help="bundled name, directory, or Hub id (default tiny-qwen)")
    parser.add_argument(
        "--data", nargs="+", metavar="FILE",
        help="files or directories of POPE, COCO (CHAIR), ScreenSpot or a manifest; or generated pictures: worlds, "
        "worlds:scene, worlds:screen, worlds:pope, worlds:captions",
    )  # fmt: skip
    parser.add_argument("--format", help="pope, chair, screenspot, manifest or worlds (default: told by the contents)")
    parser.add_argument("--images", metavar="DIR", help="where the pictures lie (default: beside the data file)")
    parser.add_argument("--boxes", help="how boxes are written: xyxy, xywh, xyxy-unit or xywh-unit")
    parser.add_argument(
        "--points", help="what points mean: pixels, resized, unit, hundred, thousand, loc (default: by model)"
    )
    parser.add_argument(
        "--parser", default="stated",
        help="how answers are read: stated (default; what is said in the end, without reasoning and markup), or as "
        "published figures of yes and no were: reference (POPE's own), contractions or strict",
    )  # fmt: skip
    parser.add_argument("--synonyms", metavar="FILE", help="table of objects for CHAIR (default: our own)")
    parser.add_argument(
        "--policy", nargs="+", action="extend", default=[], metavar="POLICY",
        help="presets, policy files, or lines such as fastv:keep_ratio=0.1,layer=4; compared "
        "on the same samples; dense is always one of them",
    )  # fmt: skip
    parser.add_argument("--prompt", metavar="TEXT", help="template, {question} stands for the sample's own")
    parser.add_argument("--max-new-tokens", type=int, metavar="N", help="default: what the kind of a sample needs")
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="samples in a call (default 8)")
    parser.add_argument("--limit", type=int, metavar="N", help="ask only a seeded choice of so many samples")
    parser.add_argument("--seed", type=int, help="of the choice, the intervals and the policies (default 0, their own)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    parser.add_argument("--device-map", metavar="auto", help="auto: spread a model too big for one device over all")
    parser.add_argument("--dtype", default="auto", choices=DTYPES)
    parser.add_argument("--maps", type=int, default=64, metavar="N", help="kept-token maps for the report (default 64)")
    parser.add_argument("--retry-errors", action="store_true", help="ask once more what failed in an earlier start")
    parser.add_argument("--out", metavar="DIR", help="the run directory; a run that was interrupted goes on there")
    parser.add_argument("--report", metavar="DIR", help="only sum up a run directory again and rewrite its report")


def execute(options: argparse.Namespace) -> None:
    """Ask, sum up and report; or the last two alone."""
    from ..evaluation.evaluate import evaluate  # with accelerate and transformers: not for every command

    if bool(options.report) == bool(options.out):
        raise ValueError("give --out DIR for a run, or --report DIR to report on one that was made before")
    if options.report:
        finish(Path(options.report))
        return
    if not options.data:
        raise ValueError("give --data: files of a data set, or the name of generated worlds")
    try:
        run = evaluate(settings(options))
    except KeyboardInterrupt:
        print(f"interrupted: what was answered is saved in {options.out}; run the same command again to go on")
        raise
    if run is not None:
        finish(run)


def settings(options: argparse.Namespace) -> Any:
    """`evaluation.evaluate.Settings` from the options."""
    from ..evaluation.data import Source
    from ..evaluation.evaluate import Settings

    source = Source(
        data=tuple(options.data),
        run=Path(options.out),
        format=options.format,
        images=options.images,
        boxes=options.boxes,
        synonyms=options.synonyms,
        limit=options.limit,
        seed=options.seed or 0,
    )
    return Settings(
        model=options.model,
        source=source,
        policies=options.policy,
        device=options.device,
        device_map=options.device_map,
        dtype=options.dtype,
        batch_size=options.batch_size,
        prompt=options.prompt,
        max_new_tokens=options.max_new_tokens,
        seed=options.seed,
        parser=options.parser,
        units=options.points,
        maps=options.maps,
        retry_errors=options.retry_errors,
    )


def finish(run: Path) -> None:
    """Sum up, print the figures and write the report."""
    from ..evaluation.report import write_report
    from ..evaluation.summary import summarize

    summary = summarize(run)
    print(table(summary))
    print(f"{summary['samples']} samples about {summary['pictures']} pictures; 95 % intervals over pictures")
    print(f"wrote {write_report(run)}")


def table(summary: dict[str, Any]) -> str:
    """A line per policy: headline figures with the ends of their 95 % intervals, tokens, latency, errors."""
    policies = summary["policies"]
    names = [name for name in SHOWN if any(name in one["metrics"] for one in policies.values())]
    width = max(map(len, policies))
    lines = ["", f"{'policy':<{width}} {'n':>6} {'errors':>6} {'kept':>8} {'ttft ms':>8} {'agrees':>7}"]
    lines[1] += "".join(f" {name:>20}" for name in names)
    for name, one in policies.items():
        kept, ttft, agrees = one["tokens"]["kept"], one["latency"]["ttft_ms"], one["agreement_with_dense"]
        line = f"{name:<{width}} {one['n']:>6} {one['errors']:>6} {number(kept):>8}"
        line += f" {number(ttft and ttft['median']):>8} {number(agrees and 100 * agrees['value']):>7}"
        lines.append(line + "".join(f" {figure(metric, one['metrics'].get(metric)):>20}" for metric in names))
    if not summary["complete"]:
        lines.append("not complete: some samples have no answer yet")
    return "\n".join(lines)


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def figure(metric: str, found: dict[str, float] | None) -> str:
    if found is None:
        return "-"
    scale = 100 if metric in PERCENT else 1
    return f"{scale * found['value']:.1f} ({scale * found['low']:.1f}-{scale * found['high']:.1f})"

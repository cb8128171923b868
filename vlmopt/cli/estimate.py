"""`vlmopt estimate`: what a model would cost on a device, dense and under policies, from its config alone."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

DEVICES = "h100 a100 l40s 4090 t4"
MEASURED = "devices.json"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", default="Qwen/Qwen2.5-VL-7B-Instruct",
        help="config.json, directory, bundled name, or Hub id; many are known without a network (see --models)",
    )  # fmt: skip
    parser.add_argument("--models", action="store_true", help="list the models whose configs come with the package")
    parser.add_argument(
        "--image", nargs="+", default=["1280x800"], metavar="WxH", help="size in pixels (default 1280x800)"
    )
    parser.add_argument("--images", type=int, default=1, metavar="N", help="how many of each size (default 1)")
    parser.add_argument(
        "--text", type=int, default=60, metavar="N", help="tokens of text, chat template included (default 60)"
    )
    parser.add_argument("--new-tokens", type=int, default=128, metavar="N", help="generated tokens (default 128)")
    parser.add_argument(
        "--policy", nargs="+", default=["balanced"], metavar="POLICY",
        help="presets, files or lines such as fastv:keep_ratio=0.1; dense is always shown",
    )  # fmt: skip
    parser.add_argument(
        "--device",
        nargs="+",
        default=DEVICES.split(),
        metavar="NAME",
        help=f"devices (default {DEVICES}); see --devices",
    )
    parser.add_argument("--devices", action="store_true", help="list the devices with their peaks and sources")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="samples that run together (default 1)")
    parser.add_argument(
        "--engine", default="eager", choices=("eager", "graph"),
        help="eager: transformers; graph: whole steps are launched at once, as serving engines do",
    )  # fmt: skip
    parser.add_argument(
        "--assume-keep", type=float, metavar="FRACTION",
        help="visual tokens that stay where a method decides it by the content",
    )  # fmt: skip
    parser.add_argument(
        "--calibrate", nargs="?", const="here", metavar="NAME",
        help="measure this machine first (a minute) and predict for it; NAME is what it is called (default here)",
    )  # fmt: skip
    parser.add_argument(
        "--measured", metavar="FILE", help=f"measured devices: read here, written by --calibrate (default {MEASURED})"
    )
    parser.add_argument("--json", action="store_true", help="machine-readable")
    parser.add_argument("--figure", metavar="FILE", help="draw the stages, dense and policies, as SVG")


def execute(options: argparse.Namespace) -> None:
    if options.models:
        from ..estimation.source import known

        print("\n".join(known()))
        return
    if options.devices:
        print(device_list(options.measured))
        return
    if options.figure and not options.figure.endswith(".svg"):
        raise ValueError(f"--figure {options.figure!r} must end in .svg, the only format it is drawn in")
    from ..estimation import estimate

    found = estimate(
        options.model,
        image=options.image,
        images=options.images,
        text=options.text,
        new_tokens=options.new_tokens,
        policies=options.policy,
        devices=calibrated(options),
        dtype=options.dtype,
        batch=options.batch,
        engine=options.engine,
        assume_keep=options.assume_keep,
        measured=measured_file(options),
    )
    print(json.dumps(found.to_dict(), indent=2) if options.json else found)
    if options.figure:
        from ..estimation.figure import draw

        Path(options.figure).write_text(draw(found), encoding="utf-8")
        if not options.json:
            print(f"wrote {options.figure}")


def calibrated(options: argparse.Namespace) -> list[str]:
    """Devices to predict for; this machine alone where it is measured first."""
    if options.calibrate is None:
        return list(options.device)
    from ..estimation.calibration import calibrate, save

    path = save(options.measured or MEASURED, options.calibrate, calibrate(dtype=options.dtype))
    if not options.json:
        print(f"measured this machine; wrote {path}")
    return [options.calibrate]


def measured_file(options: argparse.Namespace) -> str | None:
    """The file of measured devices: what was named, or the default where it was just written."""
    given: str | None = options.measured
    return given or (MEASURED if options.calibrate else None)


def device_list(measured: str | None) -> str:
    """Every device with what is assumed of it, and where that comes from."""
    from ..estimation.devices import devices, table

    lines = []
    for one in devices(measured).values():
        peaks = ", ".join(f"{dtype} {peak / 1e12:g}" for dtype, peak in one.peaks.items())
        lines.append(
            f"{one.name:<8}{one.title}: {one.memory / 1e9:.0f} GB, {one.bandwidth / 1e9:.0f} GB/s, peak TFLOP/s {peaks}"
        )
    sources: dict[str, Any] = table()["sources"]
    return "\n".join([*lines, "", *(f"{what}: {text}" for what, text in sources.items())])

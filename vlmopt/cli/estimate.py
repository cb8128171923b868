"""`vlmopt estimate`: what a model would cost on a device, dense and under policies, from its config alone."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from ..choices import MEASURED


def execute(options: argparse.Namespace) -> None:
    """Print a prediction, or the models or devices that are known."""
    if options.models:
        from ..estimation.source import known

        print("\n".join(known()))
        return
    if options.devices:
        print(device_list(options.measured))
        return
    from ..estimation import estimate

    prompt = {
        "image": options.image,
        "images": options.images,
        "text": options.text,
        "new_tokens": options.new_tokens,
        "policies": options.policy,
        "devices": calibrated(options),
        "dtype": options.dtype,
        "batch": options.batch,
        "engine": options.engine,
        "assume_keep": options.assume_keep,
        "measured": measured_file(options),
    }
    if options.rps is not None:
        fleet(options, prompt)
        return
    found = estimate(options.model, **prompt)
    print(json.dumps(found.to_dict(), indent=2) if options.json else found)
    if options.figure:
        from ..estimation.figure import draw

        Path(options.figure).write_text(draw(found), encoding="utf-8")
        if not options.json:
            print(f"wrote {options.figure}")


def fleet(options: argparse.Namespace, prompt: dict[str, Any]) -> None:
    """Print how many devices a rate needs."""
    from dataclasses import asdict

    from ..estimation import capacities, mix_of

    mix = mix_of(options.mix) if options.mix else [{}]
    found = capacities(options.model, options.rps, limit_s=options.limit_ms / 1e3, mix=mix, **prompt)
    if options.json:
        print(json.dumps({"kind": "prediction", "capacities": [asdict(one) for one in found]}, indent=2))
        return
    print(*found, "Predicted by a simulation of continuous batching, not measured.", sep="\n")


def calibrated(options: argparse.Namespace) -> list[str]:
    """Return the devices to predict for; this machine alone where it is measured first."""
    if options.calibrate is None:
        return list(options.device)
    from ..estimation.calibration import calibrate, save
    from ..estimation.devices import devices

    place = options.measured or MEASURED
    if os.path.exists(place):
        devices(place)  # a file that holds none is not written over
    path = save(place, options.calibrate, calibrate(dtype=options.dtype))
    if not options.json:
        print(f"measured this machine; wrote {path}")
    return [options.calibrate]


def measured_file(options: argparse.Namespace) -> str | None:
    """Return the file of measured devices: what was named, or the default where it was just written."""
    given: str | None = options.measured
    return given or (MEASURED if options.calibrate else None)


def device_list(measured: str | None) -> str:
    """List every device with what is assumed of it, and where that comes from."""
    from ..estimation.devices import devices, table

    lines = []
    for one in devices(measured).values():
        peaks = ", ".join(f"{dtype} {peak / 1e12:g}" for dtype, peak in one.peaks.items())
        lines.append(
            f"{one.name:<8}{one.title}: {one.memory / 1e9:.0f} GB, {one.bandwidth / 1e9:.0f} GB/s, peak TFLOP/s {peaks}"
        )
    sources: dict[str, Any] = table()["sources"]
    return "\n".join([*lines, "", *(f"{what}: {text}" for what, text in sources.items())])

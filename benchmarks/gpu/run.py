"""What only a GPU can tell, in one command of eight minutes, most worth first; it goes on where it was stopped.

Every stage has a budget of seconds and is made of units. A unit appends its JSON line as soon as it is measured; what
no time is left for is left out, and a second call does just that, and what failed. Units run in a process of their own,
which is started again where a unit takes it down. vlmopt need not be installed.

    python benchmarks/gpu/run.py                           # into benchmarks/results/gpu.jsonl
    python benchmarks/gpu/run.py --out $OUT --minutes 8
    python benchmarks/gpu/run.py --toy --out toy           # no GPU: narrow models, Triton's interpreter
    python benchmarks/tables.py --write                    # the summary, into docs/benchmarks.md
"""

from __future__ import annotations

import argparse
import faulthandler
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
BESIDE = ("pruning", "attention_fix", "apps")  # folders that are installed as parts of vlmopt
GRACE = 60  # seconds behind the budget of its stage, after which a unit counts as hanging


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results", help="folder of gpu.jsonl")
    parser.add_argument("--minutes", type=float, default=8, help="after which no unit is begun")
    parser.add_argument("--stages", nargs="+", help="default: all, in order")
    parser.add_argument("--toy", action="store_true", help="narrow models on a CPU, Triton's interpreter")
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)  # a process of units: when no more is begun
    options = parser.parse_args()
    if options.until is not None:
        work(options)
        return
    options.out.mkdir(parents=True, exist_ok=True)
    until = time.time() + 60 * options.minutes
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, __file__, *sys.argv[1:], "--until", str(until)]
        while time.time() < until:
            ended = subprocess.run(words, env=environment(Path(folder), options.toy))
            running = options.out / "running.json"
            if not running.exists():
                break
            unit = json.loads(running.read_text())
            running.unlink()
            append(options.out, {**unit, "error": f"the process ended with {ended.returncode}"})
    last = {line["unit"]: line for line in lines(options.out) if line["toy"] == options.toy}
    failed = [name for name, line in last.items() if "error" in line]
    print(f"\n{len(last) - len(failed)} units measured, {len(failed)} failed{': ' * bool(failed)}{', '.join(failed)}")
    sys.exit(bool(failed) or not last)


def environment(folder: Path, toy: bool) -> dict[str, str]:
    """Return variables under which Python finds vlmopt, installed or not, and Triton its interpreter."""
    given = dict(os.environ)
    if toy:
        given["TRITON_INTERPRET"] = "1"  # read when Triton is imported
    if importlib.util.find_spec("vlmopt") is None:
        package = folder / "vlmopt"
        package.mkdir(exist_ok=True)
        for path in (*(ROOT / "vlmopt").iterdir(), *(ROOT / name for name in BESIDE)):
            if not (package / path.name).exists():
                (package / path.name).symlink_to(path)
        given["PYTHONPATH"] = os.pathsep.join([str(folder), *filter(None, [given.get("PYTHONPATH")])])
    return given


def lines(out: Path) -> list[dict[str, Any]]:
    path = out / "gpu.jsonl"
    return [json.loads(text) for text in path.read_text().splitlines()] if path.exists() else []


def append(out: Path, line: dict[str, Any]) -> None:
    with (out / "gpu.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")


def work(options: argparse.Namespace) -> None:
    """Run the units that have no result yet and did not fail in this call, stage by stage."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from stages import STAGES, Scale, facts, healthy, release

    scale = Scale.small() if options.toy else Scale.h200()
    machine = facts()
    for stage in STAGES:
        if options.stages and stage.name not in options.stages:
            continue
        begun = time.time()
        for name, measure in stage.units(scale).items():
            unit = f"{stage.name}/{name}"
            before = [line for line in lines(options.out) if line["unit"] == unit and line["toy"] == options.toy]
            if any("error" not in line or line["call"] == options.until for line in before):
                continue
            left = min(options.until - time.time(), stage.seconds - (time.time() - begun))
            if left <= 0:
                print(f"{unit}: no time left", flush=True)
                continue
            line = {"unit": unit, "toy": options.toy, "call": options.until, "machine": machine}
            (options.out / "running.json").write_text(json.dumps(line))
            print(f"\n== {unit}", flush=True)
            faulthandler.dump_traceback_later(left + GRACE, exit=True)
            start = time.time()
            try:
                found = measure()
            except Exception as error:  # the other units are worth measuring all the same
                traceback.print_exc()
                found = {"error": f"{type(error).__name__}: {error}"}
            faulthandler.cancel_dump_traceback_later()
            append(options.out, {**line, "seconds": time.time() - start, **found})
            (options.out / "running.json").unlink()
            if "error" in found and not healthy():
                sys.exit(1)
            release()


if __name__ == "__main__":
    main()

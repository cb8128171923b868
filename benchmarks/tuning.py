"""Does a tuned policy keep its promise?

A simulation with known truth, and one where every candidate loses the budget exactly; whole searches on the bundled
checkpoints; and policies tuned twenty times on few images and asked about fresh ones.

    python benchmarks/tuning.py --simulate
    python benchmarks/tuning.py --end-to-end tiny-qwen tiny-llava
    python benchmarks/tuning.py --repeat 20
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

from common import append
from tests.support.simulated_tuning import SCALE, SPREAD, at_the_budget, table
from vlmopt import tune
from vlmopt.checkpoints import load_checkpoint
from vlmopt.evaluation.data import Source
from vlmopt.evaluation.evaluate import Settings, evaluate
from vlmopt.evaluation.loading import load_data
from vlmopt.evaluation.records import DENSE, read
from vlmopt.tuning.marks import differences
from vlmopt.tuning.splits import images_of

ROWS = ((0.01, None), (0.02, None), (0.03, None), (0.01, 1000), (0.01, 2000), (0.02, 1000), (0.03, 2000))
SMALL = [
    {"method": "div_prune", "keep_ratio": [0.5, 0.25, 0.1]}, {"method": "uniform", "keep_ratio": [0.5, 0.25]},
    {"method": "random", "keep_ratio": [0.5, 0.25]}, {"method": "fastv", "layer": 2, "keep_ratio": [0.5, 0.25]},
]  # fmt: skip
POLLS = "worlds:pope"  # yes or no about scenes, one question an image
FRESH, FRESH_IMAGES = 900, 200  # seed of images that no search has seen


def simulate(runs: int) -> None:
    rows = [{"budget": budget, "holdout": holdout, **table(budget, holdout, runs)} for budget, holdout in ROWS]
    edge = [
        {"budget": budget, "holdout": holdout, "returned": at_the_budget(budget, holdout, runs)}
        for budget, holdout in ROWS if holdout
    ]  # fmt: skip
    for row in [*rows, *edge]:
        print(row)
    append("tuning", {"kind": "simulation", "runs": runs, "scale": SCALE, "spread": SPREAD, "rows": rows, "edge": edge})


def end_to_end(name: str, budget: float, limit: int) -> None:
    model, processor = load_checkpoint(name)
    with tempfile.TemporaryDirectory() as folder:
        start, used = time.perf_counter(), time.process_time()
        result = tune(model, processor, "worlds", out=folder, budget=budget, objective="tokens", limit=limit)
        seconds, work = time.perf_counter() - start, time.process_time() - used
    print(result, f"\n{seconds:.0f} s, {work:.0f} s of the CPU, {result.spent} answers")
    facts = {key: value for key, value in result.facts.items() if key not in ("refused", "data", "model", "tried")}
    append(
        "tuning", {"kind": "end to end", "model": name, "seconds": round(seconds), "cpu_seconds": round(work), **facts}
    )


def repeat(name: str, count: int, budget: float, limit: int) -> None:
    """Tune on images of another seed each time; then ask all policies that came out about the same fresh images."""
    model, processor = load_checkpoint(name)
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(1, count + 1):
            result = tune(
                model, processor, POLLS, out=Path(folder) / str(seed), budget=budget, objective="tokens",
                space=SMALL, limit=limit, seed=seed,
            )  # fmt: skip
            held = result.facts["holdout"]
            found.append({"seed": seed, "policy": result.name, "holdout": held, "cost": 1 / result.speedup})
        policies = sorted({one["policy"] for one in found} - {DENSE})
        source = Source(data=(POLLS,), run=Path(folder) / "fresh", limit=FRESH_IMAGES, seed=FRESH)
        settings = Settings(model=name, source=source, policies=policies, maps=0)
        run = evaluate(settings)
        images = images_of(load_data(source).samples, run)
        records = {record.key: record for record in read(run)}
        fresh = {policy: differences(images, records, policy, False)["accuracy"] for policy in policies}
    for one in found:
        one["fresh"] = 0.0 if one["policy"] == DENSE else round(100 * float(fresh[one["policy"]].mean()), 3)
        print(one)
    kept = sum(one["fresh"] >= -budget for one in found)
    print(f"{kept} of {count} keep {budget:g} points on {len(images)} fresh images")
    facts = {"model": name, "budget": budget, "images": limit, "fresh_images": len(images), "kept": kept}
    append("tuning", {"kind": "repeated", **facts, "runs": found})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulate", action="store_true")
    parser.add_argument("--end-to-end", nargs="+", default=[], metavar="MODEL")
    parser.add_argument("--repeat", type=int, default=0, metavar="N")
    parser.add_argument("--runs", type=int, default=2000, help="simulated searches a row")
    parser.add_argument("--budget", type=float, default=None, help="points (default 10, of repeated runs 12)")
    parser.add_argument("--limit", type=int, default=None, help="questions (default 120, of repeated runs 60)")
    options = parser.parse_args()
    if options.simulate:
        simulate(options.runs)
    for name in options.end_to_end:
        end_to_end(name, options.budget or 10.0, options.limit or 120)
    if options.repeat:
        repeat("tiny-qwen", options.repeat, options.budget or 12.0, options.limit or 60)


if __name__ == "__main__":
    main()

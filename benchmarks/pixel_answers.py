"""Do answers survive `pixel_redundancy`? How often the bundled `tiny-qwen` clicks the same, and how many clicks hit.

At tolerance 0 the pixels can be rebuilt exactly, but the model does not get to see them again: its answers may change.
Figures of the small bundled checkpoint say nothing about real models.

    python benchmarks/pixel_answers.py --targets 200
"""

from __future__ import annotations

import argparse

import vlmopt
from common import append
from grounding import CHECKPOINT, answers, generated, hits, real
from pages import pages
from vlmopt.metrics import mean_interval, wilson
from vlmopt.pruning import PixelRedundancy

SEED = 631_000_000  # of screens that neither training nor `grounding.py` has seen


def ask(count: int) -> None:
    """Compare clicks of the bundled checkpoint, dense and without redundant cells, on screens and windows of pages."""
    model, processor = vlmopt.load_checkpoint(CHECKPOINT)
    found = pages()
    asked = {
        "drawn": (generated(count, SEED), {}),
        "web": (real(found, count, SEED), {"pages": found.name}),
    }
    for part, (targets, source) in asked.items():
        before, whole = answers(model, processor, targets, "dense")
        rows = []
        for tolerance in (0.0, 0.02):
            after, tokens = answers(model, processor, targets, PixelRedundancy(tolerance=tolerance))
            same = sum(a == b for a, b in zip(before, after, strict=True))
            hit = [hits(targets, said) for said in (before, after)]
            less = mean_interval([float(b) - float(a) for a, b in zip(*hit, strict=True)])
            rows.append({
                "tolerance": tolerance, "cells": tokens["kept"] / whole["kept"], "same": same, "hit": sum(hit[1]),
                "less_dense": less,
            })  # fmt: skip
            low, high = wilson(same, len(targets))
            print(
                f"{part}, tolerance {tolerance:g}: {100 * rows[-1]['cells']:.0f} % of the cells, same answer {same} of "
                f"{len(targets)} ({100 * low:.1f} to {100 * high:.1f} %), hits {sum(hit[1])} against {sum(hit[0])}, "
                f"{100 * less.value:+.1f} ({100 * less.low:+.1f} to {100 * less.high:+.1f}) points"
            )
        facts = {"checkpoint": CHECKPOINT, "targets": part, "of": len(targets), "seed": SEED}
        append("pixel_answers", {**facts, **source, "dense": sum(hit[0]), "rows": rows})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", type=int, default=200, help="clicks of each kind")
    ask(parser.parse_args().targets)


if __name__ == "__main__":
    main()

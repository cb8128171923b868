"""What does a dropped token cost? The bundled test organism under every control, on identical fresh pictures.

Random and resize stand beside every method: one that does not beat them earns nothing. Figures of this small
checkpoint say nothing about real models. "layers" is the share of visual tokens averaged over decoder layers: methods
that cut inside the LLM spend more than their keep ratio, and only rows with the same share are on one budget.

    python benchmarks/controls.py --pictures 200
"""

from __future__ import annotations

import argparse
from typing import Any

from tqdm import tqdm

import vlmopt
from common import append
from pruning import FastV, Random, Resize, Uniform
from vlmopt.training.evaluate import answer_all, correct, one_of_each_kind, wilson

KEEP = (0.5, 0.25, 0.1)
KINDS = {"presence": "scene presence", "colour": "scene colour", "click": "screen click"}


def variants() -> dict[str, Any]:
    """Policies by name, dense first."""
    policies: dict[str, Any] = {"dense": "dense"}
    for ratio in KEEP:
        policies |= {
            f"random {ratio}": Random(keep_ratio=ratio),
            f"uniform {ratio}": Uniform(keep_ratio=ratio),
            f"resize {ratio}": Resize(keep_ratio=ratio),
            f"fastv {ratio} at layer 2": FastV(keep_ratio=ratio, layer=2),
            f"fastv {ratio} at layer 2, pospad": FastV(keep_ratio=ratio, layer=2, positions="pospad"),
        }
    return policies


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="tiny-qwen")
    parser.add_argument("--pictures", type=int, default=200, help="scenes, and as many screens")
    parser.add_argument("--first-seed", type=int, default=600_000_000, help="of the pictures; training uses 1e9 and up")
    options = parser.parse_args()
    model, processor = vlmopt.load_checkpoint(options.checkpoint)
    pairs = [pair for pair in one_of_each_kind(options.pictures, options.first_seed) if pair[1].kind in KINDS]
    asked = sorted(
        (pair for pair in pairs if f"{pair[0].family} {pair[1].kind}" in KINDS.values()),
        key=lambda pair: (pair[0].size, pair[1].kind),
    )
    rows = []
    print(f"{'policy':44s} {'layers':>6s} " + " ".join(f"{kind:>22s}" for kind in KINDS))
    for name, policy in tqdm(variants().items(), desc="policies", leave=False):
        with vlmopt.optimized(model, policy):
            answers = answer_all(model, processor, asked)
            sample = vlmopt.report(model).samples[0]
        share = sample["layer_average"] / sample["visual_tokens"]
        marks: dict[str, list[bool]] = {kind: [] for kind in KINDS}
        for (_, question), answer in zip(asked, answers, strict=True):
            marks[question.kind].append(correct(question, answer))
        row = {"policy": name, "layer_average": share}
        cells = []
        for kind, right in marks.items():
            low, high = wilson(sum(right), len(right))
            row[kind] = {"accuracy": sum(right) / len(right), "interval": [low, high], "of": len(right)}
            cells.append(f"{100 * sum(right) / len(right):5.1f} % ({100 * low:4.1f}-{100 * high:4.1f})".rjust(22))
        rows.append(row)
        tqdm.write(f"{name:44s} {100 * share:5.1f}% " + " ".join(cells))
    path = append("controls", {"checkpoint": options.checkpoint, "pictures": options.pictures, "rows": rows})
    print(f"appended to {path}")


if __name__ == "__main__":
    main()

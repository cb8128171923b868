"""Which estimator of projector sensitivity is cheap and true? Every one against finite differences of 512 directions.

"rank" is Spearman's correlation with two-sided finite differences (fp32, relative step 1e-3) that use the same 64
directions, or 512 others; the second is bounded by how well 64 directions rank at all, as finite differences show.
Random projectors have the shapes of LLaVA-1.5 and of the Qwen2.5-VL-7B merger on random patches; the bundled merger
sees the patches of a generated screen.

    python benchmarks/estimators.py --tokens 128
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

import vlmopt
from common import append, interleaved
from vlmopt.measure import Spread
from vlmopt.prompt import image_prompt
from vlmopt.pruning import TwoLayers
from vlmopt.pruning.sensitivity import (
    Folded,
    closed_form,
    directions,
    finite_difference,
    fold,
    forward_mode,
    frobenius,
    low_rank,
    relative_steps,
)
from vlmopt.synthetic import screen

STEP = 1e-3


def random_projector(n: int, p: int, d: int, hidden: int, out: int, norm: nn.Module | None) -> tuple[TwoLayers, Tensor]:
    """Return an MLP with freshly initialised weights, and patches whose lengths spread over a factor of 8."""
    generator = torch.Generator().manual_seed(0)
    layers = TwoLayers(norm, True, nn.Linear(p * d, hidden), nn.GELU(), nn.Linear(hidden, out))
    for linear in (layers.first, layers.second):
        linear.weight.data.normal_(0, linear.in_features**-0.5, generator=generator)
        linear.bias.data.normal_(0, 0.1, generator=generator)
    length = 8 ** torch.rand(n, 1, 1, generator=generator) / 2
    return layers, length * torch.randn(n, p, d, generator=generator)


@torch.no_grad()
def bundled_merger() -> tuple[TwoLayers, Tensor]:
    """Return the merger of the bundled checkpoint, and what its tower makes of a screen."""
    model, processor = vlmopt.load_checkpoint("tiny-qwen")
    world = screen(seed=7)
    seen: list[Tensor] = []
    merger = model.model.visual.merger
    handle = merger.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()))
    model(**image_prompt(processor, world.questions[0].text, [world.image]))
    handle.remove()
    layers = TwoLayers(merger.ln_q, True, merger.mlp[0], merger.mlp[1], merger.mlp[2])
    return layers, seen[0].reshape(-1, merger.mlp[0].in_features // seen[0].shape[-1], seen[0].shape[-1])


def spearman(a: Tensor, b: Tensor) -> float:
    ranks = torch.stack([a.argsort().argsort(), b.argsort().argsort()]).double()
    return float(torch.corrcoef(ranks)[0, 1])


def estimators(layers: TwoLayers, inputs: Tensor) -> dict[str, Callable[[Folded], Tensor]]:
    """Return the estimators on a projector whose weights are folded already, as from a model's second prompt on."""
    few = directions(64, *inputs.shape[1:], seed=0)
    steps = relative_steps(inputs, STEP)
    return {
        "finite_difference": lambda mlp: finite_difference(mlp, inputs, few, steps),
        "jvp": lambda mlp: forward_mode(mlp, inputs, few),
        "closed_form": lambda mlp: closed_form(mlp, inputs, few),
        "closed_form, m=8": lambda mlp: closed_form(mlp, inputs, few[:8]),
        "frobenius": lambda mlp: frobenius(mlp, inputs),
    }


def timed(score: Callable[[Folded], Tensor], mlp: Folded) -> float:
    """Return milliseconds of one scoring."""
    start = time.perf_counter()
    score(mlp)
    return (time.perf_counter() - start) * 1e3


def timed_fresh(score: Callable[[Folded], Tensor], layers: TwoLayers, p: int) -> float:
    """Return milliseconds of one scoring from the module's own weights, as for a model's first prompt."""
    start = time.perf_counter()
    score(fold(layers, p))
    return (time.perf_counter() - start) * 1e3


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=128, help="of the random projectors")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rank", type=int, default=128, help="of the low-rank surrogate")
    options = parser.parse_args()
    n = options.tokens
    projectors = {
        "bundled merger": bundled_merger(),
        "LLaVA-1.5 shape": random_projector(n, 1, 1024, 4096, 4096, None),
        "Qwen2.5-VL merger shape": random_projector(n, 4, 1280, 5120, 3584, nn.RMSNorm(1280, eps=1e-6)),
    }
    rows = []
    head = " ".join(f"{title:>10s}" for title in ("rank m=64", "rank m=512", "ms", "p20", "p80"))
    print(f"{'projector':24s} {'estimator':20s} {head}")
    for name, (layers, inputs) in projectors.items():
        p = inputs.shape[1]
        many, mlp = directions(512, *inputs.shape[1:], seed=1), fold(layers, p)
        scores = estimators(layers, inputs)
        fine = finite_difference(mlp, inputs, many, relative_steps(inputs, STEP))
        coarse = scores["finite_difference"](mlp)
        cut = low_rank(layers, options.rank)
        cheap = fold(cut, p)
        runs = {key: partial(timed, score, mlp) for key, score in scores.items()}
        runs[f"closed_form, rank {options.rank}"] = partial(timed, scores["closed_form"], cheap)
        runs["frobenius, first prompt"] = partial(timed_fresh, scores["frobenius"], layers, p)
        values = {key: score(mlp) for key, score in scores.items()}
        values[f"closed_form, rank {options.rank}"] = scores["closed_form"](cheap)
        values["frobenius, first prompt"] = values["frobenius"]
        for key, times in interleaved(runs, options.repeats).items():
            spread, ranks = Spread.of(times), [spearman(values[key], truth) for truth in (coarse, fine)]
            ms = f"{spread.median:10.1f} {spread.p20:10.1f} {spread.p80:10.1f}"
            print(f"{name:24s} {key:20s} {ranks[0]:10.4f} {ranks[1]:10.4f} {ms}")
            row = {"projector": name, "estimator": key, "tokens": len(inputs), "spearman": ranks}
            rows.append({**row, "ms": spread.to_dict()})
    print(f"appended to {append('estimators', {'step': STEP, 'rows': rows})}")


if __name__ == "__main__":
    main()

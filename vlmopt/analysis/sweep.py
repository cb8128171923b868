"""Run one prompt at several budgets: what fewer visual tokens cost in agreement with the dense answer, and save."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from difflib import SequenceMatcher
from statistics import median
from typing import Any, TypeVar

from torch import nn

from vlmopt.pruning import Debias, Random, Selector, Uniform

from ..api import optimized, report
from ..policy import Policy
from ..reporting import Report

DENSE = "dense"
Kind = TypeVar("Kind", bound=Selector)


@dataclass(frozen=True)
class SweepPoint:
    """One run of a sweep, for the first sample of the batch."""

    name: str
    keep_ratio: float  # asked for; 1 for dense
    kept_share: float  # left after the last cut, of all visual tokens
    layer_share: float  # visual tokens (with markers) that a decoder layer sees on average, of all
    ids: tuple[int, ...]  # the answer
    agreement: float  # with the dense answer, 0-1, by the sweep's `agree`
    ttft_ms: float  # median
    total_ms: float


def contenders(policy: Policy) -> dict[str, Selector]:
    """Return what a sweep compares: a policy's selectors, each alone, and the controls at the first one's layer."""
    methods: dict[str, Selector] = {f"{m.label}, layer {m.layer}": m for m in policy.prune if not m.is_identity}
    layer = min((m.layer for m in methods.values()), default=0)
    for control in (Random(keep_ratio=0.5, layer=layer), Uniform(keep_ratio=0.5, layer=layer)):
        if not any(type(m) is type(control) for m in methods.values()):
            methods[control.label] = control
    return methods


def with_keep_ratio(method: Kind, keep_ratio: float) -> Kind:
    """Return the same method with another budget; schedules of its own become the ones that belong to the ratio.

    Raises:
        ValueError: a ratio outside (0, 1].
    """
    if isinstance(method, Debias):
        return replace(method, host=with_keep_ratio(method.host, keep_ratio))
    changes: dict[str, Any] = {"keep_ratio": keep_ratio, "keep_tokens": None}
    if any(f.name == "ratios" for f in fields(method)):
        changes["ratios"] = ()
    return replace(method, **changes)


def agreement(ids: Sequence[int], dense: Sequence[int]) -> float:
    """Return the share of the tokens of two answers that match in order, 0-1: 2 m / (n + n'), 1 for two empty ones."""
    return SequenceMatcher(None, list(ids), list(dense), autojunk=False).ratio()


def sweep(
    model: nn.Module,
    inputs: Mapping[str, Any],
    methods: Mapping[str, Selector],
    keep_ratios: Sequence[float],
    *,
    max_new_tokens: int = 32,
    repeats: int = 1,
    seed: int = 0,
    generate: Mapping[str, Any] | None = None,
    agree: Callable[[Sequence[int], Sequence[int]], float] = agreement,
    progress: Callable[[int, int, str], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> list[SweepPoint]:
    """Run a prompt dense, then with every method at every ratio, greedily; each method prunes alone.

    Args:
        model: a loaded vision-language model; it is given back as it came. inputs: of `generate`, on its device.
        repeats: timed runs per point, of which the medians count; one unmeasured run comes before all others.
        seed: of the policies. generate: further arguments of `model.generate`.
        agree: how well an answer agrees with the dense one, 0-1, from the tokens of both; where they name points, what
            counts is how far apart these are, not how many digits are the same (`click.click_agreement`).
        progress: told (done, all, what comes next) before every run. stop: asked before and after every run; True ends
            the sweep, without the run that it came in.

    Returns:
        Dense first, then what was run before it was stopped.

    Raises:
        ValueError: no method, no ratio, a ratio outside (0, 1], repeats below 1, or what `optimize` refuses.
    """
    if not methods or not keep_ratios or repeats < 1:
        raise ValueError(f"a sweep needs a method, a keep ratio and repeats >= 1, got repeats={repeats}")
    runs: list[tuple[str, float, Policy]] = [(DENSE, 1.0, Policy())]
    for ratio in sorted(set(keep_ratios)):
        for name, method in methods.items():
            runs.append((name, ratio, Policy(prune=[with_keep_ratio(method, ratio)], seed=seed)))
    arguments = {"do_sample": False, "max_new_tokens": max_new_tokens, **(generate or {})}
    points: list[SweepPoint] = []
    for done, (name, ratio, policy) in enumerate(runs):
        if progress is not None:
            progress(done, len(runs), name if name == DENSE else f"{name}, keep ratio {ratio:g}")
        if stop is not None and stop():
            break
        found, ids = ask(model, inputs, policy, arguments, repeats, warmup=done == 0)
        if stop is not None and stop():
            break  # the answer may have been cut short
        sample = found[-1].samples[0]
        total = max(sample["visual_tokens"], 1)
        points.append(
            SweepPoint(
                name=name,
                keep_ratio=ratio,
                kept_share=sample["visual_tokens_kept"] / total,
                layer_share=sample["layer_average"] / total,
                ids=ids,
                agreement=agree(ids, points[0].ids if points else ids),
                ttft_ms=median(run.ms["ttft"] or 0.0 for run in found),
                total_ms=median(run.ms["total"] or 0.0 for run in found),
            )
        )
    return points


def front(points: Sequence[SweepPoint]) -> list[SweepPoint]:
    """Return the points that no other beats.

    One point beats another if it keeps as few tokens and agrees as well, and is better in one of both.
    """

    def beats(a: SweepPoint, b: SweepPoint) -> bool:
        saved, better = b.kept_share - a.kept_share, a.agreement - b.agreement
        return saved >= 0 and better >= 0 and (saved > 0 or better > 0)

    return [point for point in points if not any(beats(other, point) for other in points)]


def ask(
    model: Any, inputs: Mapping[str, Any], policy: Policy, arguments: Mapping[str, Any], repeats: int, warmup: bool
) -> tuple[list[Report], tuple[int, ...]]:
    """Return the reports of `repeats` runs, and the answer of the first sample in the last one."""
    found = []
    with optimized(model, policy):
        for turn in range(warmup + repeats):
            ids = model.generate(**inputs, **arguments)
            if turn >= warmup:
                found.append(report(model))
    return found, tuple(ids[0, inputs["input_ids"].shape[1] :].tolist())

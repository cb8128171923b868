"""Run one prompt at several budgets: what fewer visual tokens cost in agreement with the dense answer, and save."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from difflib import SequenceMatcher
from statistics import median
from typing import Any, TypeAlias, TypeVar

from torch import nn

from vlmopt.pruning import Debias, Random, Selector, Uniform

from ..api import optimized, report
from ..policy import Policy
from ..reporting import Report

DENSE = "dense"
Kind = TypeVar("Kind", bound=Selector)
Ids: TypeAlias = tuple[int, ...]


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
    repeats: int = 1  # runs behind the medians


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
        repeats: timed runs per point, of which the medians count: whole rounds of all points, so that a machine that
            slows down slows all of them. One unmeasured run comes before.
        seed: of the policies. generate: further arguments of `model.generate`.
        agree: how well an answer agrees with the dense one, 0-1, from the tokens of both; where they name points, what
            counts is how far apart these are, not how many digits are the same (`click.click_agreement`).
        progress: told (done, all, what comes next) before every run. stop: asked before and after every run; True ends
            the sweep, without the run that it came in.

    Returns:
        Dense first, then what was run before it was stopped; `SweepPoint.repeats` says how often.

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
    asked: list[tuple[Ids, list[Report]]] = []  # of each point: the answer, and a report per round
    for turn in range(repeats):
        for number, (name, ratio, policy) in enumerate(runs):
            if progress is not None:
                what = name if name == DENSE else f"{name}, keep ratio {ratio:g}"
                progress(turn * len(runs) + number, repeats * len(runs), what)
            if stop is not None and stop():
                return points_of(runs, asked, agree)
            ids, found = ask(model, inputs, policy, arguments, warmup=not asked)
            if stop is not None and stop():  # the answer may have been cut short
                return points_of(runs, asked, agree)
            if turn == 0:
                asked.append((ids, []))
            asked[number][1].append(found)
    return points_of(runs, asked, agree)


def points_of(
    runs: Sequence[tuple[str, float, Policy]],
    asked: Sequence[tuple[Ids, Sequence[Report]]],
    agree: Callable[[Sequence[int], Sequence[int]], float],
) -> list[SweepPoint]:
    """Return a point for each run that was asked, the dense one first."""
    points = []
    for (name, ratio, _), (ids, found) in zip(runs, asked, strict=False):  # a stopped sweep asked fewer
        sample = found[-1].samples[0]
        total = max(sample["visual_tokens"], 1)
        points.append(
            SweepPoint(
                name=name,
                keep_ratio=ratio,
                kept_share=sample["visual_tokens_kept"] / total,
                layer_share=sample["layer_average"] / total,
                ids=ids,
                agreement=agree(ids, asked[0][0]),
                ttft_ms=median(run.ms["ttft"] or 0.0 for run in found),
                total_ms=median(run.ms["total"] or 0.0 for run in found),
                repeats=len(found),
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
    model: Any, inputs: Mapping[str, Any], policy: Policy, arguments: Mapping[str, Any], warmup: bool
) -> tuple[Ids, Report]:
    """Return the answer of the first sample, and the report of the run; where `warmup`, of a second one."""
    with optimized(model, policy):
        for _ in range(1 + warmup):
            ids = model.generate(**inputs, **arguments)
        return tuple(ids[0, inputs["input_ids"].shape[1] :].tolist()), report(model)

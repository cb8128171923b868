"""The costs of those that may become finalists, and of controls to be shown beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

from ..atomic import atomic_write
from ..evaluation.saved import saved
from . import timing
from .asking import Asked
from .result import dumped
from .rules import DENSE, Cost
from .search import Search
from .space import CONTROLS

AGAIN = "delete it, and times are taken again"
FAILED = "failed"  # key of a reason in the file of times, in place of a cost
TIMED = 12  # the most candidates that are timed, spread over the tokens that they leave


def priced(
    search: Search, racing: Asked, losses: Mapping[str, float], others: Sequence[str]
) -> tuple[dict[str, Cost], dict[str, str]]:
    """Return the costs of candidates and of controls; of those that have to be timed, a choice spread over tokens.

    Args:
        losses: of the promising ones. others: who else was asked; to be shown beside them.

    Returns:
        The costs, and why some of those that were chosen have none.
    """
    objective, run = search.wanted.objective, search.settings.source.run
    if objective in timing.COUNTED:
        return timing.counted(racing.records, [*losses, *others], objective), {}
    tokens = timing.counted(racing.records, list(losses), "tokens")
    order = sorted(losses, key=lambda name: (tokens[name].ratio, losses[name], name))
    count = min(TIMED, len(order))
    chosen = [order[number * (len(order) - 1) // max(count - 1, 1)] for number in range(count)]
    if chosen:
        chosen += controls(chosen, tokens[chosen[0]], timing.counted(racing.records, [*losses, *others], "tokens"))
    path = run / f"times-{objective}.json"
    if search.team.main:
        known = saved(path, dict, AGAIN)
        if search.settings.retry_errors:
            known = {name: cost for name, cost in known.items() if FAILED not in cost}
        missing = [name for name in chosen if name not in known]
        if missing:
            policies = {name: search.runner.policies[name] for name in (DENSE, *missing)}
            samples = [sample for image in search.parts.search for sample in image]
            fresh, failed = timing.timed(
                search.runner.asking, samples, search.settings.batch_size, policies, objective, racing.records
            )
            known |= {name: asdict(cost) for name, cost in fresh.items()}
            known |= {name: {FAILED: why} for name, why in failed.items()}
            with atomic_write(path) as file:
                file.write_text(dumped(known), encoding="utf-8")
    search.team.wait()
    times = saved(path, dict, AGAIN)
    failures = {name: f"cannot be timed: {times[name][FAILED]}" for name in chosen if FAILED in times[name]}
    return {name: Cost(**times[name]) for name in chosen if name not in failures}, failures


def controls(chosen: Sequence[str], aim: Cost, tokens: Mapping[str, Cost]) -> list[str]:
    """Return, of every control that is not chosen, what leaves about as many tokens as the harshest that is."""
    found = []
    for control in CONTROLS:
        own = [name for name in tokens if name.partition(":")[0] == control]
        if own and not any(name in chosen for name in own):
            found.append(min(own, key=lambda name: (abs(tokens[name].ratio - aim.ratio), name)))
    return found

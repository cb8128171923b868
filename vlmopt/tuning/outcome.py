"""Put together what a race and a confirmation found: the policy, and the whole account of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..evaluation.environment import installed, processor
from ..evaluation.records import Record
from ..offload import device_of
from ..policy import Policy
from ..version import __version__
from .bounds import needed
from .marks import AGREEMENT, differences
from .race import Race
from .result import FORMAT, Tried, TuneResult, front, in_points
from .rules import DENSE, Cost, Marks, Seen, worst
from .search import Search
from .space import CONTROLS
from .wanted import percent, points

Answers = Mapping[tuple[str, str], Record]
LOYALTY = "agreement with the dense answer: loyalty, not accuracy, for the data says of no answer whether it is right"


def outcome(
    search: Search, ran: Race, costs: Mapping[str, Cost], finalists: Sequence[str],
    tested: Mapping[str, tuple[Marks, bool]], answers: Answers,
) -> TuneResult:  # fmt: skip
    """Return the result of a search that came to its end.

    Args:
        costs: of those that were promising. finalists: from slow to fast.
        tested: of the finalists, differences on the hold-out, and whether they hold the budget.
    """
    rules = search.wanted.rules
    tried = [entry(name, search, ran, costs, finalists, tested) for chain in search.space.chains for name in chain]
    name, confirmed = chosen(tested, search.wanted.best_effort)
    held = None if name == DENSE else Seen.of(tested[name][0], rules.confidence)
    kinds = {} if name == DENSE else by_category(search, answers, name)
    marks = sorted({mark for one in ran.marks.values() for mark in one})
    speedup = 1 / costs[name].ratio if name in costs else 1.0
    facts: dict[str, Any] = {
        "format": FORMAT,
        "promise": promise(search, name, confirmed, held, costs),
        "confirmed": confirmed,
        "policy": name,
        "model": search.settings.model,
        "data": list(search.settings.source.data),
        "digest": search.data.digest,
        "split": search.parts.digest,
        "images": {"search": len(search.parts.search), "holdout": len(search.parts.holdout)},
        "marks": marks,
        "loyalty": AGREEMENT in search.kinds,
        "budget": search.wanted.budget,
        "confidence": rules.confidence,
        "objective": search.wanted.objective,
        "speedup": speedup,
        "holdout": in_points(held),
        "categories": kinds,
        "finalists": list(finalists),
        "notes": [*search.notes, *notes(search, name, tested, kinds, answers)],
        "tried": [one.to_dict() for one in tried],
        "refused": [{"policy": name, "why": why} for name, why in search.space.refused.items()],
        "answers": len(answers),
    }
    policy = replace(search.runner.policies[name], tuned=note(search, facts)) if name != DENSE else Policy()
    return TuneResult(
        policy=policy,
        name=name,
        passed=confirmed,
        difference=None if held is None else 100 * held.difference,
        interval=None if held is None else (100 * held.low, 100 * held.high),
        speedup=speedup,
        front=tuple(front(tried)),
        tried=tuple(tried),
        spent=len(answers),
        facts=facts,
    )


def chosen(tested: Mapping[str, tuple[Marks, bool]], best_effort: bool) -> tuple[str, bool]:
    """Return the fastest that is confirmed, or, where an unconfirmed one will do, the slowest; and whether it is."""
    confirmed = [name for name, (_, holds) in tested.items() if holds]
    if confirmed:
        return confirmed[-1], True
    return next((name for name, (marks, _) in tested.items() if marks and best_effort), DENSE), False


def entry(
    name: str, search: Search, ran: Race, costs: Mapping[str, Cost], finalists: Sequence[str],
    tested: Mapping[str, tuple[Marks, bool]],
) -> Tried:  # fmt: skip
    """Return what is known of a candidate, and why it was not chosen."""
    confidence = search.wanted.rules.confidence
    seen = Seen.of(ran.marks[name], confidence) if ran.marks.get(name) else None
    held = Seen.of(tested[name][0], confidence) if name in tested and tested[name][0] else None
    holds = tested[name][1] if name in tested else None
    why = ran.dropped.get(name, "")
    if why or holds:
        pass
    elif holds is False:
        why = "the hold-out does not confirm it"
    elif name in finalists:
        why = "a slower finalist was not confirmed"
    elif name not in costs:
        why = "lost more than half the budget on the search part, or was not chosen to be timed"
    elif costs[name].ratio >= 1:
        why = "is not cheaper than dense"
    else:
        why = "another stands for it among the finalists"
    return Tried(name=name, seen=seen, cost=costs.get(name), held=held, holds=holds, why=why)


def promise(search: Search, name: str, confirmed: bool, held: Seen | None, costs: Mapping[str, Cost]) -> str:
    """Say in a sentence or two what is certain."""
    rules, objective = search.wanted.rules, search.wanted.objective
    if held is None:
        return (
            f"No candidate was confirmed to lose at most {points(rules.budget)} against dense; dense stays. A larger "
            "budget or more images may change that."
        )
    faster = f"{name} needs {costs[name].ratio:.0%} of dense's {objective}"
    if not confirmed:
        return f"{faster}, but is not confirmed to lose at most {points(rules.budget)}."
    mark = LOYALTY if held.mark == AGREEMENT else held.mark
    return (
        f"{faster}. With confidence {percent(rules.confidence)} it loses at most {points(rules.budget)} against dense "
        f"on data like this ({mark}; {100 * held.difference:+.2f} on {held.images} images that chose nobody)."
    )


def notes(
    search: Search, name: str, tested: Mapping[str, tuple[Marks, bool]], kinds: Mapping[str, Any], answers: Answers
) -> list[str]:
    """Return what a reader should know besides the promise."""
    told, rules = [], search.wanted.rules
    dense = sorted((record for (policy, _), record in answers.items() if policy == DENSE), key=lambda one: one.index)
    if failed := [record for record in dense if record.error is not None]:
        told.append(
            f"dense failed on {len(failed)} of {len(dense)} questions, which say nothing of any candidate; the first, "
            f"{failed[0].id}: {failed[0].error}; once the cause is gone, --retry-errors asks them again"
        )
    if AGREEMENT in search.kinds:
        told.append(f"{'some of the' if search.mixed else 'the'} quality is {LOYALTY}")
    if name in CONTROLS or name.partition(":")[0] in CONTROLS:
        told.append(f"{name} is a control that looks at nothing: no method was better here")
    if len(kinds) > 1:
        worst_kind, seen = next(iter(kinds.items()))
        told.append(
            f"the worst category is {worst_kind}: {seen['difference']:+.2f} points, bounds {seen['low']:+.2f} and "
            f"{seen['high']:+.2f}, {seen['images']} images; nothing is confirmed of one category alone"
        )
    for finalist, (own, holds) in tested.items():
        if own and not holds:
            square = float((own[worst(own)] ** 2).mean())
            count = needed(square, rules.budget, rules.confidence)
            told.append(
                f"{finalist} was not confirmed on {len(search.parts.holdout)} images; if it loses nothing, it takes "
                f"{count} ({square:.1%} of the answers change)"
            )
    return told


def by_category(search: Search, answers: Answers, name: str) -> dict[str, Any]:
    """Return category -> what the hold-out says of it, the worst first; for reading, not confirmed one by one."""
    parts: dict[str, list[Any]] = {}
    for image in search.parts.holdout:
        for sample in image:
            parts.setdefault(sample.category or sample.kind, []).append(sample)
    found = {}
    for category, samples in parts.items():
        own = {sample.id for sample in samples}
        images = [tuple(s for s in image if s.id in own) for image in search.parts.holdout]
        marks = differences([image for image in images if image], answers, name, search.mixed)
        if marks:
            found[category] = Seen.of(marks, search.wanted.rules.confidence)
    order = sorted(found, key=lambda category: (found[category].difference, category))
    return {category: in_points(found[category]) for category in order}


def note(search: Search, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a tuned policy says of itself."""
    model = search.runner.asking.loaded.model
    device = device_of(model)
    return {
        "model": Path(search.settings.model).name,
        "model_type": str(model.config.model_type),
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        "device": processor() if device.type == "cpu" else str(device),
        "versions": {"vlmopt": __version__, "torch": installed("torch"), "transformers": installed("transformers")},
        **{key: facts[key] for key in ("digest", "split", "budget", "confidence", "objective", "confirmed", "loyalty")},
        "batch_size": search.settings.batch_size,
    }

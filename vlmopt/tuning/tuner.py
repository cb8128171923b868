"""`vlmopt.tune`: the whole search on a loaded model, from data to a policy that is confirmed."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from vlmopt.core import hinting

from ..checkpoints import HERE, bundled
from ..evaluation.data import Data, Source
from ..evaluation.environment import environment, note_environment
from ..evaluation.evaluate import Settings, check_options, request, runner_of
from ..evaluation.loading import load_data
from ..evaluation.processes import Processes, locked, processes
from ..evaluation.prompts import Batch
from ..evaluation.records import consolidate
from ..evaluation.request import settle
from ..evaluation.runner import Runner
from ..loading import Loaded
from ..offload import device_of
from ..policy import Policy, PolicyLike
from . import race
from .asking import Asked, questions
from .looks import looked, looked_before
from .outcome import outcome
from .pace import Pace
from .pricing import priced
from .result import TuneResult, write
from .rules import DENSE, loss
from .search import Search
from .space import read, space
from .splits import Split, split
from .wanted import Wanted, check_images


@hinting
def tune(
    model: Any,
    processor: Any,
    data: str | Path | Sequence[str | Path],
    *,
    out: str | Path,
    budget: float = 1.0,
    objective: str = "ttft",
    confidence: float = 0.95,
    space: str | Path | Sequence[Any] | None = None,
    base: PolicyLike | None = None,
    minutes: float | None = None,
    best_effort: bool = False,
    batch_size: int = 8,
    max_new_tokens: int | None = None,
    limit: int | None = None,
    seed: int = 0,
    retry_errors: bool = False,
    format: str | None = None,
    images: str | None = None,
    boxes: str | None = None,
    synonyms: str | None = None,
) -> TuneResult:
    """Find the fastest policy that loses at most `budget` points against dense on data like yours, with confidence.

    Candidates race on a third of the images; at most four go on to the others, which chose nobody, and are confirmed
    there from slow to fast until one fails. See `docs/tune.md` for what is promised and what it costs.

    Args:
        model: loaded, on its device; it is given back as it came. processor: its own.
        data: anything `vlmopt eval` reads. Samples without a right answer are marked by agreement with dense: that is
            loyalty, not accuracy.
        out: directory of the search; one that was interrupted goes on there.
        budget: points, 0 to 100, of every mark (accuracy, anls, chair_i, chair_recall, agreement), over images.
        objective: what is to be least, one of `choices.OBJECTIVES`.
        confidence: above 0.5 and below 1.
        space: a space file, or its entries; None for the usual candidates.
        base: methods that every candidate has, such as corrections.
        minutes: that the search may take; the confirmation comes to its end all the same.
        best_effort: go on with too few images; `passed` says whether the outcome is confirmed.
        batch_size: samples in a call, as they will be deployed.
        limit, seed: ask only a seeded choice of so many samples; the seed also deals images to the parts.
        retry_errors: ask once more what failed in an earlier start.
        format: pope, chair, screenspot, manifest, worlds, ...; None: told by the contents.
        images: where the images lie; None: beside the data.
        boxes: how boxes are written: xyxy, xywh, xyxy-unit or xywh-unit. synonyms: table of objects for CHAIR.

    Raises:
        Unresolvable: too few images for the budget. ValueError, TypeError: something that cannot be right. OSError.
    """
    entries = read(space) if isinstance(space, (str, Path)) else space
    wanted = Wanted(
        budget=budget, objective=objective, confidence=confidence, space=entries,
        base=Policy() if base is None else Policy.load(base), minutes=minutes, best_effort=best_effort,
    )  # fmt: skip
    names = (data,) if isinstance(data, (str, Path)) else data
    settings = Settings(
        model=called(model),
        source=Source(
            data=tuple(map(str, names)),
            run=Path(out),
            format=format,
            images=images,
            boxes=boxes,
            synonyms=synonyms,
            limit=limit,
            seed=seed,
        ),
        policies=(),
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        maps=0,
        retry_errors=retry_errors,
    )
    check_options(settings)
    with processes(device_of(model)) as team:
        return found(settings, wanted, Loaded(settings.model, model, processor), team)


def called(model: Any) -> str:
    """Return what a loaded model is asked for by: of a bundled one its name, else where it was loaded from."""
    path = str(model.config.name_or_path or model.config.model_type)
    return next((name for name in bundled() if Path(path) == HERE / name), path)


def found(settings: Settings, wanted: Wanted, loaded: Loaded, team: Processes) -> TuneResult:
    """Search; every process returns the same."""
    run = settings.source.run
    run.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        if team.main:
            held.enter_context(locked(run, team))
            dealt(settings, wanted, str(loaded.model.config.model_type))  # generated images are made once
        team.wait()
        search = prepared(settings, wanted, loaded, team)
        if team.main:
            opened(search, loaded)
        team.wait()
        if not team.main:
            team.check_shared(run)
            held.enter_context(locked(run, team))
        result = searched(search)
        team.wait()
        if team.main:
            consolidate(run, list(search.runner.policies))
            write(result, run)
    return result


def dealt(settings: Settings, wanted: Wanted, model_type: str) -> tuple[Data, Split, str]:
    """Read the data and split it; say how many images it takes.

    Raises:
        Unresolvable: it has too few. ValueError, OSError: it cannot be read.
    """
    data = load_data(replace(settings.source, model_type=model_type))
    parts = split(data.samples, settings.source.run, settings.source.seed, wanted.rules.rungs[-1])
    return data, parts, check_images(wanted, len(parts.holdout))


def prepared(settings: Settings, wanted: Wanted, loaded: Loaded, team: Processes) -> Search:
    """Choose what to try, and prepare to ask."""
    data, parts, told = dealt(settings, wanted, str(loaded.model.config.model_type))
    plain = runner_of(settings, loaded, data, {DENSE: Policy()}, team)
    tried = space(loaded.model, wanted.base, longest(plain, parts, wanted), wanted.space)
    runner = runner_of(settings, loaded, data, {DENSE: Policy(), **tried.policies}, team)
    refused = () if wanted.space is None else [f"{name} cannot be tried: {why}" for name, why in tried.refused.items()]
    return Search(
        settings=settings, wanted=wanted, team=team, data=data, parts=parts, space=tried, runner=runner,
        notes=(told, *refused),
    )  # fmt: skip


def longest(runner: Runner, parts: Split, wanted: Wanted) -> int:
    """Return the tokens of the longest prompt of the first look."""
    first = wanted.rules.looks(len(parts.search))[0]
    samples = [sample for image in parts.search[:first] for sample in image]
    batches = [
        made for batch in runner.asking.plan(samples, runner.batch_size) for made in runner.asking.prepare(batch)
    ]
    return max((made.inputs["input_ids"].shape[1] for made in batches if isinstance(made, Batch)), default=0)


def opened(search: Search, loaded: Loaded) -> None:
    """Put the directory in order: what is asked for, by whom, and what was looked for before."""
    run = search.settings.source.run
    settle(run, request(search.settings, loaded, search.data, search.runner))
    consolidate(run, list(search.runner.policies), without_errors=search.settings.retry_errors)
    note_environment(run, environment(loaded, search.team.count))
    looked(search)
    for note in (*loaded.notes, *search.notes, *search.data.notes):
        print(f"note: {note}")


def searched(search: Search) -> TuneResult:
    """Race, shortlist, confirm."""
    rules, parts = search.wanted.rules, search.parts
    looks = rules.looks(len(parts.search))
    racing = Asked(
        runner=search.runner, team=search.team, images=parts.search, looks=looks, title="race",
        mixed=search.mixed, later=(1 + rules.finalists) * questions(parts.holdout),
    )  # fmt: skip
    pace = Pace(search=search, racing=racing)
    ran = race.race(search.space.chains, racing, rules, len(parts.search), pace)
    losses = {name: loss(ran.marks[name]) for name in race.promising(ran, rules)}
    costs, failed = priced(search, racing, losses, [name for name in ran.marks if name not in losses])
    ran.dropped |= {name: why for name, why in failed.items() if name in losses}
    finalists = race.shortlist({name: own for name, own in losses.items() if name in costs}, costs, rules)
    confirming = Asked(
        runner=search.runner, team=search.team, images=parts.holdout, looks=(), title="confirm",
        mixed=search.mixed,
    )  # fmt: skip
    tested = race.confirm(finalists, confirming, rules, len(parts.holdout))
    told = (*search.notes, *search.data.notes, *looked_before(search))
    return outcome(replace(search, notes=told), ran, costs, finalists, tested, {**racing.records, **confirming.records})

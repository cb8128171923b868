"""Run a whole evaluation: load, refuse, ask, merge; in one process or many, from the start or from where it stopped."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vlmopt.core import Configured

from ..api import optimized
from ..checkpoints import HERE, bundled, check_name, load_checkpoint
from ..checkpoints.processor import FAILURES, first_line
from ..choices import UNITS
from ..families import click_units
from ..loading import Loaded, _config, check_device, load
from ..metrics.pope import PARSERS
from ..policy import Policy
from .boxes import CONVENTIONS
from .data import Data, Source
from .environment import environment, note_environment
from .generation import decoding
from .loading import load_data
from .processes import Processes, locked, processes
from .prompts import BOX_PROMPTS, POINT_PROMPTS, Asking
from .recorder import Recorder, maps_left
from .records import FORMAT, consolidate
from .request import named_policies, settle
from .runner import Runner
from .scoring import Marking
from .sweep import grid

PROMPTS = {"screenspot": POINT_PROMPTS, "refcoco": BOX_PROMPTS}  # of data that brings words alone, by units


@dataclass(frozen=True, kw_only=True)
class Settings(Configured):
    """What the user asked for.

    Attributes:
        model, device, dtype: as for `vlmopt.loading.load`; `device_map` "auto" spreads one replica over all devices.
        source: the data; its `run` is the run directory.
        policies: presets and files; dense is always added.
        sweep, ratios: methods, each tried at every ratio, beside the policies (`sweep.grid`).
        prompt: template; None for that of the data.
        max_new_tokens: None for what the kind of a sample needs.
        seed: of the policies; None for their own. Intervals and the choice of samples take `source.seed`.
        parser: how answers are read (`scoring.Marking`); units: of clicks; None for what the model says.
        maps: kept-token maps to save per policy.
        retry_errors: ask once more what failed before.
    """

    model: str
    source: Source
    policies: Sequence[str]
    sweep: Sequence[str] = ()
    ratios: Sequence[float] = ()
    device: str = "auto"
    device_map: str | None = None
    dtype: str = "auto"
    batch_size: int = 8
    prompt: str | None = None
    max_new_tokens: int | None = None
    seed: int | None = None
    parser: str = "stated"
    units: str | None = None
    maps: int = 64
    retry_errors: bool = False


def evaluate(settings: Settings) -> Path | None:
    """Run, or go on with, an evaluation; return the run directory in the first process, None in the others.

    Raises:
        ValueError, TypeError: something that cannot be right, before anything is asked; or a policy that fails on every
            sample. OSError: a file cannot be read or written. What was answered is saved in every case.
    """
    policies = check(settings)
    run = settings.source.run
    with processes(check_device(settings.device)) as team, ExitStack() as held:
        if team.count > 1 and settings.device_map:
            raise ValueError(
                f"--device-map {settings.device_map} spreads one replica over all devices, and {team.count} processes "
                "would need one each: start one process, or leave --device-map out"
            )
        run.mkdir(parents=True, exist_ok=True)
        source = replace(settings.source, model_type=str(model_config(settings.model).model_type))
        if team.main:
            held.enter_context(locked(run, team))
            data = load_data(source)
            units_of(settings, data)
        loaded = load_model(settings, team)
        for policy in policies.values():
            with optimized(loaded.model, policy):
                pass  # what cannot work on this model is refused here
        if team.main:
            runner = runner_of(settings, loaded, data, policies, team)
            settle(run, request(settings, loaded, data, runner))
            consolidate(run, list(policies), without_errors=settings.retry_errors)
            note_environment(run, environment(loaded, team.count))
            for note in (*loaded.notes, *data.notes):
                print(f"note: {note}")
        team.wait()
        if not team.main:  # images that the run generates are there now, and the directory is in order
            team.check_shared(run)
            held.enter_context(locked(run, team))
            runner = runner_of(settings, loaded, load_data(source), policies, team)
        runner.go()
        team.wait()
        if not team.main:
            return None
        consolidate(run, list(policies))
    return run


def check(settings: Settings) -> dict[str, Policy]:
    """Check the settings as far as they alone can tell; return the policies.

    Raises:
        ValueError, TypeError: what is wrong with them.
    """
    check_options(settings)
    check_name(settings.model)
    return named_policies(list(settings.policies), settings.seed, grid(settings.sweep, settings.ratios))


def check_options(settings: Settings) -> None:
    """Check what neither names a model nor a policy.

    Raises:
        ValueError: what is wrong with it.
    """
    for name, value, least in (
        ("batch-size", settings.batch_size, 1),
        ("max-new-tokens", settings.max_new_tokens, 1),
        ("maps", settings.maps, 0),
        ("seed", settings.source.seed, 0),
    ):
        if value is not None and value < least:
            raise ValueError(f"--{name} must be {least} or more, got {value}")
    for name, choice, choices in (
        ("parser", settings.parser, PARSERS),
        ("points", settings.units, UNITS),
        ("boxes", settings.source.boxes, CONVENTIONS),
    ):
        if choice is not None and choice not in choices:
            raise ValueError(f"--{name} {choice!r} is unknown: choose from {', '.join(choices)}")
    if settings.prompt is not None and not settings.prompt.strip():
        raise ValueError("--prompt is empty; give some text, with {question} where the sample's own goes")
    if settings.device_map not in (None, "auto"):
        raise ValueError(f"--device-map {settings.device_map!r} is unknown: auto, or leave it out")
    if settings.source.run.exists() and not settings.source.run.is_dir():
        raise ValueError(f"--out {settings.source.run} is a file; give a directory")


def load_model(settings: Settings, team: Processes) -> Loaded:
    """Load the model on this process's device, or spread over all of them.

    Raises:
        ValueError: it cannot be loaded.
    """
    if settings.device_map is None:
        return load(settings.model, device=str(team.device), dtype=settings.dtype)
    try:
        model, processor = load_checkpoint(settings.model, dtype=settings.dtype, device_map=settings.device_map)
    except FAILURES as error:
        raise ValueError(f"{settings.model} cannot be spread over the devices: {first_line(error)}") from error
    return Loaded(settings.model, model, processor)


def model_config(name: str) -> Any:
    """Return the config of a model: data that cannot be right is refused before the weights are loaded.

    Raises:
        ValueError: no such model.
    """
    return _config(str(HERE / name) if name in bundled() else name)


def units_of(settings: Settings, data: Data, config: Any = None) -> str:
    """Return the units of coordinates in answers: what the user says, else the checkpoint's config or its family.

    Args:
        config: of the loaded model; None where it is not loaded yet.

    Raises:
        ValueError: clicks are to be marked, and nobody says.
    """
    config = config or model_config(settings.model)
    units = settings.units or click_units(config)
    if units is None and any(sample.kind in ("click", "box") for sample in data.samples):
        raise ValueError(
            f"give --points {' | '.join(UNITS)}: clicks are marked, and the units in which models of type "
            f"{config.model_type!r} give coordinates are not known"
        )
    return units or "pixels"


def runner_of(settings: Settings, loaded: Loaded, data: Data, policies: dict[str, Policy], team: Processes) -> Runner:
    """Make the runner of this process's share of the work."""
    units = units_of(settings, data, loaded.model.config)
    prompt = settings.prompt or PROMPTS.get(data.format, {}).get(units, data.prompt)
    run = settings.source.run
    asking = Asking(loaded=loaded, run=run, prompt=prompt, max_new_tokens=settings.max_new_tokens)
    recorder = Recorder(
        asking=asking,
        marking=Marking(parser=settings.parser, units=units, lexicon=data.lexicon, stops=data.stops),
        place={sample.id: number for number, sample in enumerate(data.samples)},
        maps=maps_left(run, policies, settings.maps, team.count),
    )
    return Runner(
        data=data,
        asking=asking,
        recorder=recorder,
        policies=policies,
        batch_size=settings.batch_size,
        rank=team.rank,
        count=team.count,
    )


def request(settings: Settings, loaded: Loaded, data: Data, runner: Runner) -> dict[str, Any]:
    """Return the contents of run.json: everything that decides the answers and their marks."""
    limits = sorted({(sample.kind, runner.asking.limit(sample)) for sample in data.samples})
    return {
        "format": FORMAT,
        "model": settings.model,
        "dtype": str(next(loaded.model.parameters()).dtype).removeprefix("torch."),
        "data": list(settings.source.data),
        "data_format": data.format,
        "digest": data.digest,
        "samples": len(data.samples),
        "limit": settings.source.limit,
        "seed": settings.source.seed,
        "batch_size": settings.batch_size,
        "prompt": runner.asking.prompt,
        "decoding": {**decoding(loaded.model), "max_new_tokens": dict(limits)},
        "parser": runner.recorder.marking.described(),
        "notes": list(data.notes),
        "policies": {
            name: {key: value for key, value in policy.to_dict().items() if key != "vlmopt"}
            for name, policy in runner.policies.items()
        },
        "lines": {name: [point.line, point.ratio] for name, point in grid(settings.sweep, settings.ratios).items()},
    }

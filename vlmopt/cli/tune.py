"""`vlmopt tune`: the fastest policy inside a quality budget, confirmed on images that chose nobody."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

NOTHING = 3  # exit code where no policy is confirmed


def execute(options: argparse.Namespace) -> int:
    """Search and report; or report on a search that was made before. Return 3 where nothing is confirmed."""
    if options.report:
        from ..tuning.report import write_report

        print(f"wrote {write_report(Path(options.report))}")
        return 0
    from ..tuning.wanted import Unresolvable

    try:
        return search(options)
    except Unresolvable as error:
        print(f"vlmopt: {error}", file=sys.stderr)
        return NOTHING
    except KeyboardInterrupt:
        print(f"interrupted: what was answered is saved in {options.out}; run the same command again to go on")
        raise


def search(options: argparse.Namespace) -> int:
    """Load the model in every process, search, and report in the first."""
    from ..evaluation.evaluate import Settings, check, load_model, model_config
    from ..evaluation.processes import processes
    from ..loading import check_device
    from ..policy import Policy
    from ..tuning.space import read
    from ..tuning.tuner import dealt, found
    from ..tuning.wanted import Wanted
    from .source import source_of

    source = source_of(options)
    settings = Settings(
        model=options.model,
        source=source,
        policies=(),
        device=options.device,
        device_map=options.device_map,
        dtype=options.dtype,
        batch_size=options.batch_size,
        prompt=options.prompt,
        max_new_tokens=options.max_new_tokens,
        parser=options.parser,
        units=options.points,
        maps=0,
        retry_errors=options.retry_errors,
    )
    check(settings)
    wanted = Wanted(
        budget=options.budget,
        objective=options.objective,
        confidence=options.confidence,
        space=None if options.space is None else read(options.space),
        base=Policy() if options.base is None else Policy.load(options.base),
        minutes=options.minutes,
        best_effort=options.best_effort,
    )
    with processes(check_device(options.device)) as team:
        if team.main:  # refused before weights are loaded
            dealt(settings, wanted, str(model_config(settings.model).model_type))
        result = found(settings, wanted, load_model(settings, team), team)
        if team.main:
            from ..tuning.report import write_report

            print(result)
            print(f"wrote {write_report(source.run)}")
    return 0 if result.passed else NOTHING

"""`vlmopt search-patterns`: find, on calibration prompts, which sparse pattern suits which head of a model."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..atomic import atomic_write
from ..calibration import Profile
from ..checks import model_facts
from ..head_patterns import FACTS, HeadPatterns
from ..kernels.patterns import ViewPattern
from ..layer_reuse import LayerReuse
from ..loading import Loaded, check_device, load
from ..methods import to_dict
from ..offload import device_of
from ..reading import SparseReading
from ..runtime.structure import structure_of
from ..search import PatternSearch, candidates
from ..search.prompts import Inputs, image_source, length, video_source
from ..version import __version__
from .calibrate import images_in, sound, stored

MOST = 5  # prompts


def execute(options: argparse.Namespace) -> None:
    """Search; go on where an interrupted run of the same command stopped."""
    profile, files = check(options)
    files = sound(files, len(files))[0] if files else []
    loaded = load(options.model, device=options.device, dtype=options.dtype)
    facts = model_facts(loaded.model, structure_of(loaded.model))
    if profile is not None:
        check_profile(profile, options.into, facts)
    prompts = prompts_of(options, loaded, files)
    part = Path(f"{options.out}.part")
    asked = ("model", "video", "images", "question", "tokens", "match", "dense_layers", "tile", "dtype")
    request = {**{name: getattr(options, name) for name in asked}, "samples": len(prompts)}
    run = Run(loaded, candidates(options.tokens, options.tile), options, part, request)
    run.through(prompts)
    found = run.search.result(
        loaded.name,
        {
            "samples": [name for name, _ in prompts],
            "tokens": run.tokens,
            "device": str(device_of(loaded.model)),
            "date": datetime.now(timezone.utc).date().isoformat(),
            "reference": to_dict(run.search.candidates[0]),
            "vlmopt": __version__,
        },
    )
    found.save(options.out)
    if profile is not None:
        replace(Profile.load(options.into), prefill=found.to_dict()).save(options.into)
    part.unlink(missing_ok=True)
    print(table(found, run.search))
    if found.reuse is not None:
        print(schedule(found.reuse))
    for path in (options.out, options.into):
        if path:
            print(f"wrote {path}")


def check(options: argparse.Namespace) -> tuple[Profile | None, list[Path]]:
    """Check the files and names that the options give; return the profile and the images."""
    if (options.samples or 0) > MOST:
        raise ValueError(
            f"--samples must be {MOST} or fewer, got {options.samples}: patterns carry over to new prompts"
        )
    candidates(options.tokens, options.tile)
    files = images_in(Path(options.images)) if options.images not in (None, "worlds") else []
    check_device(options.device)
    return (Profile.load(options.into) if options.into else None), files


def check_profile(profile: Profile, path: str, facts: Mapping[str, Any]) -> None:
    """Raise `ValueError` for the profile of another model."""
    differ = [name for name in FACTS if profile.model.get(name, facts[name]) != facts[name]]
    if differ:
        raise ValueError(f"--into {path} is the profile of another model: it differs in {', '.join(differ)}")


def prompts_of(
    options: argparse.Namespace, loaded: Loaded, files: Sequence[Path]
) -> list[tuple[str, Callable[[], Inputs]]]:
    """Return the name of each prompt, and how to make it; the sources take turns."""
    count = len(options.video) + bool(options.images)
    samples = options.samples or count
    sources = [video_source(loaded, path, options.tokens, options.question) for path in options.video]
    if options.images:
        own = len(range(count - 1, samples, count))
        sources.append(image_source(loaded, files, options.tokens, options.question, own))
    out: list[tuple[str, Callable[[], Inputs]]] = []
    for n in range(samples):
        source, number = sources[n % count], n // count
        if source.only is not None and number >= source.only:
            raise ValueError(f"--samples {samples} is too many: {source.name} makes {source.only} prompts only")
        out.append((source.name, partial(source.make, number)))
    return out


class Run:
    """A search that records how far it came.

    Args:
        part: the file for that. request: what was asked for; the file of another request is refused.
    """

    def __init__(
        self, loaded: Loaded, patterns: Sequence[ViewPattern], options: argparse.Namespace, part: Path,
        request: Mapping[str, Any],
    ) -> None:  # fmt: skip
        state = stored(part, dict(request)) or {"sums": {}, "tokens": [], "finished": [0, 0]}
        self.part, self.request = part, dict(request)
        self.tokens, self.finished = list(state["tokens"]), list(state["finished"])
        self.search = PatternSearch(
            loaded.model, patterns, match=options.match, dense_layers=options.dense_layers, state=state["sums"]
        )
        if state["sums"]:
            print(f"going on with {part}")

    def through(self, prompts: Sequence[tuple[str, Callable[[], Inputs]]]) -> None:
        """Show all prompts, in both passes."""
        layers = self.search.searched
        bar = tqdm(total=2 * len(prompts) * layers, desc="searching", unit="layer")

        def done() -> None:
            bar.update()
            self.save()

        for number, show in enumerate((self.search.measure, self.search.compare)):
            for n, (name, make) in enumerate(prompts):
                bar.set_postfix_str(f"pass {number + 1}, {name}")
                if n < self.finished[number] or (number and not self.search.boundaries):
                    continue
                inputs = make()
                if not number:
                    self.tokens[n:] = [length(inputs)]
                show(n, inputs, done)
                self.finished[number] += 1
                bar.update((number * len(prompts) + n + 1) * layers - bar.n)  # layers that cannot be searched, too
        bar.close()
        self.save()

    def save(self) -> None:
        self.part.parent.mkdir(parents=True, exist_ok=True)
        state = {"sums": self.search.state(), "tokens": self.tokens, "finished": self.finished}
        with atomic_write(self.part) as fresh:
            fresh.write_text(json.dumps({"request": self.request, **state}), encoding="utf-8")


def schedule(reuse: LayerReuse) -> str:
    """Write which layers would read all keys of a generated token, and how wrong the others would be."""
    read = SparseReading(reuse=reuse)
    full = sorted(read.full_layers(len(reuse.errors)))
    return (
        f"sparse reading within {100 * read.max_error:g} %: {len(full)} of {len(reuse.errors)} layers read all keys "
        f"({', '.join(map(str, full))})"
    )


def table(found: HeadPatterns, search: PatternSearch) -> str:
    """Write per layer how many heads got which pattern, and the mean errors of these and of the reference."""
    lines = [f"{'layer':>5}  {'error':>7}  {'reference':>9}  heads"]
    for layer, (chosen, errors) in enumerate(zip(found.layers, found.errors, strict=True)):
        if chosen is None or errors is None:
            lines.append(f"{layer:>5}  {'':>7}  {'':>9}  dense")
            continue
        sums = search.sums[layer]
        names = Counter(found.patterns[i].name for i in chosen)
        kinds = ", ".join(f"{name} {count}" for name, count in names.most_common())
        reference = float(sums.errors[0, 0].mean() / sums.prompts)
        lines.append(f"{layer:>5}  {sum(errors) / len(errors):>7.4f}  {reference:>9.4f}  {kinds}")
    return "\n".join(lines)

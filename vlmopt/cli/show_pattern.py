"""`vlmopt show-pattern`: draw what one head reads under a sparse pattern, in natural order and in that of computing."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch

from vlmopt.core import parse

from .. import methods
from ..analysis.head_maps import detail_of
from ..checks import model_facts
from ..frames import load_video
from ..head_patterns import HeadPatterns
from ..kernels.draw_head import draw_head
from ..kernels.patterns import Pattern, Prefill
from ..loading import Loaded, check_device, load
from ..media import load_image
from ..policy import inline
from ..policy.text import call
from ..prompt import image_prompt, video_prompt
from ..runtime.structure import structure_of
from ..search import watch
from ..search.capture import Shown
from ..search.planted import planted

PLANTED = {"grid": "grid", "timestamps": "boundary_2d"}  # which pattern finds what is planted
TITLE = 140  # characters


def execute(options: argparse.Namespace) -> None:
    pattern = check(options)
    if options.planted:
        prefill, head = planted(options.planted, options.tokens), 0
        title = f"planted {options.planted}"
    else:
        found = HeadPatterns.load(options.patterns) if options.patterns else None
        loaded = load(options.model, device=options.device, dtype=options.dtype)
        if found is not None:
            pattern = of_head(found, options, loaded)
        prefill, head = captured(loaded, options), options.head
        title = f"{loaded.name}, layer {options.layer}, head {head}"
    title = shorten(f"{title}, {prefill.width} tokens: {call(methods.to_dict(pattern))}", TITLE)
    prefill = replace(prefill, heads=torch.tensor([head], device=prefill.device))
    sizes = {"tile": pattern.tile, "run": pattern.run, "size": options.size}
    detail = detail_of(pattern, prefill, options.size)
    with torch.inference_mode():
        image = draw_head(prefill, pattern.build(prefill), head, detail=detail, title=title, **sizes)
    Path(options.out).parent.mkdir(parents=True, exist_ok=True)
    image.save(options.out)
    print(f"wrote {options.out}")


def check(options: argparse.Namespace) -> Pattern:
    """Check the files and names that the options give; return the pattern."""
    check_device(options.device)
    return named(options.pattern or PLANTED.get(options.planted, "min_p"))


def named(text: str) -> Pattern:
    """Read a pattern by name, in one line with its settings, or in its JSON form."""
    try:
        data: Any = parse(text) if text.lstrip().startswith("{") else None
    except ValueError as error:
        raise ValueError(f"--pattern {text} is not JSON: {error}") from error
    rows = inline.methods_of(text, set(methods.methods())) if data is None else [data]
    if len(rows) != 1:
        raise ValueError(f"--pattern {text} is {len(rows)} methods; give one pattern")
    found = methods.build(rows[0])
    if not isinstance(found, Pattern):
        raise ValueError(f"--pattern {text}: {found.name} is a {methods.kind_of(type(found))}, no pattern")
    return found


def of_head(found: HeadPatterns, options: argparse.Namespace, loaded: Loaded) -> Pattern:
    """Return what a search found for the head.

    Raises:
        ValueError: for another model, no such layer or head, or a layer that stays dense.
    """
    found.check(model_facts(loaded.model, structure_of(loaded.model)))
    check_place(options, loaded)
    chosen = found.layers[options.layer]
    if chosen is None:
        raise ValueError(f"layer {options.layer} stays dense in {options.patterns}; choose another --layer")
    pattern: Pattern = found.patterns[chosen[options.head]]
    return pattern


def check_place(options: argparse.Namespace, loaded: Loaded) -> None:
    facts = model_facts(loaded.model, structure_of(loaded.model))
    for name, count in (("layer", facts["layers"]), ("head", facts["num_heads"])):
        if getattr(options, name) >= count:
            raise ValueError(f"--{name} must be 0 to {count - 1} for {loaded.name}, got {getattr(options, name)}")


def captured(loaded: Loaded, options: argparse.Namespace) -> Prefill:
    """Return the prefill of the layer in this prompt."""
    check_place(options, loaded)
    if options.video:
        sizes = loaded.processor.image_processor
        patch, merge = getattr(sizes, "patch_size", 14), getattr(sizes, "merge_size", 2)
        video = load_video(options.video, patch_size=patch, merge_size=merge)
        inputs = video_prompt(loaded.processor, loaded.model, options.prompt, video)
    else:
        inputs = image_prompt(loaded.processor, options.prompt, [load_image(path).image for path in options.image])
    seen: list[Shown] = []

    def show(shown: Shown) -> None:
        if shown.layer == options.layer:
            seen.append(shown)

    reasons = watch(loaded.model, inputs, show, options.layer)
    if not seen:
        raise ValueError(f"the attention of layer {options.layer} cannot be shown: {'; '.join(reasons)}")
    return seen[0].prefill

"""`vlmopt.estimate`: what a model costs on a device, dense and under policies, from its config alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlmopt.core import hinting, shown, unknown

from ..policy import Policy
from .cuts import Plan, plan
from .devices import BYTES, Device, device
from .result import Estimate, Prediction
from .roofline import ENGINES, choosing, time
from .scoring import Scoring, scoring
from .source import Source, find
from .tiles import Size
from .tokens import ImageTokens, image_tokens
from .weights import Parts, on_meta, parts_of
from .work import cached, decode, per_token, prefill, projection, total, vision

CONTEXT = 0.75e9  # bytes that a CUDA context and its workspaces take, about
USABLE = 0.92  # of a device's memory
DENSE = "dense"
MOST = {"images": 10_000, "text": 10**9, "new_tokens": 10**9, "batch": 10**9}  # beyond them no figure means anything
EVERYWHERE = ("h100", "a100", "l40s", "4090", "t4")


@hinting
def estimate(
    model: str | tuple[Source, Parts],
    *,
    image: str | Size | Sequence[str | Size] = "1280x800",
    images: int = 1,
    text: int = 60,
    new_tokens: int = 128,
    policies: Sequence[Any] | Mapping[str, Any] = ("balanced",),
    devices: Sequence[str] = EVERYWHERE,
    dtype: str = "bfloat16",
    batch: int = 1,
    engine: str = "eager",
    assume_keep: float | None = None,
    measured: str | Path | None = None,
) -> Estimate:
    """Predict tokens, FLOPs, memory and times, dense and under policies. No weights are loaded, nothing is run.

    Times are those of a roofline with stated efficiencies: see `docs/estimate.md` for what they were checked against.
    Ratios between policies are worth more than milliseconds.

    Args:
        model: a config.json, a directory with one, a bundled checkpoint, a model of the shipped table, or a Hub id; or
            what `vlmopt.estimation.described` made of it, to ask for several prompts.
        image: "WIDTHxHEIGHT" or (height, width) in pixels; several for several different images.
        images: how many of each.
        text: tokens of the prompt that no image makes, chat template included.
        new_tokens: generated tokens.
        policies: anything `Policy.load` takes, or names with such; dense always comes first.
        devices: names; `vlmopt.estimation.devices()` has all.
        dtype: of weights and cache; a device without bfloat16 takes float16 or float32.
        batch: samples that run together.
        engine: "eager" (transformers), or "graph": whole steps are launched at once, as serving engines do.
        assume_keep: fraction of visual tokens that stays where a method decides it by the content.
        measured: file of `vlmopt estimate --calibrate`; its devices are known by the names in it.

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of range, a model that cannot be described, a policy
            that cannot act on it.
    """
    check_counts(images=images, text=text, new_tokens=new_tokens, batch=batch)
    if dtype not in BYTES:
        raise ValueError(unknown("dtype", dtype, BYTES))
    if engine not in ENGINES:
        raise ValueError(unknown("engine", engine, ENGINES))
    if assume_keep is not None and not 0 < assume_keep <= 1:
        raise ValueError(f"assume_keep must be > 0 and <= 1, got {shown(assume_keep)}")
    if isinstance(devices, str):
        raise TypeError(f"devices must be a list of names, got {shown(devices)}; write [{shown(devices)}]")
    where = [device(name, measured) for name in dict.fromkeys(devices)]
    if not where:
        raise ValueError("no device to predict for; give at least one, e.g. devices=['h100']")
    source, parts = described(model)
    encoded = seen(source, image, images)
    rest = text + sum(p.framing for p in encoded)
    plans = {
        name: plan(Policy.load(policy), encoded, rest, len(parts.layers), source.config, assume_keep, name)
        for name, policy in named(policies).items()
    }
    predictions = [
        predicted(name, one, parts, place, place.dtype(dtype), new_tokens, batch, engine)
        for place in where
        for name, one in plans.items()
    ]
    return Estimate(
        model=source.name,
        model_type=source.config.model_type,
        origin=source.origin,
        parameters=parts.parameters,
        images=tuple(sizes(image)) * images,
        visual_tokens=sum(p.tokens for p in encoded),
        text_tokens=rest,
        new_tokens=new_tokens,
        batch=batch,
        engine=engine,
        predictions=tuple(predictions),
    )


def check_counts(**counts: Any) -> None:
    """Raise `ValueError` unless all are whole numbers: images and text from 0 on, others from 1 on, up to `MOST`."""
    for name, value in counts.items():
        least = 0 if name in ("images", "text") else 1
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= MOST[name]:
            raise ValueError(f"{name} must be a whole number >= {least} and <= {MOST[name]}, got {shown(value)}")


def described(model: str | tuple[Source, Parts]) -> tuple[Source, Parts]:
    """Find a model and count its parts, unless that was done."""
    if isinstance(model, tuple):
        return model
    source = find(model)
    return source, parts_of(on_meta(source.config))


def named(policies: Sequence[Any] | Mapping[str, Any]) -> dict[str, Any]:
    """Return policies by name, dense first."""
    if isinstance(policies, (str, bytes)) or not isinstance(policies, (Sequence, Mapping)):
        raise TypeError(f"policies must be a list or a dict, got {shown(policies)}; write [{shown(policies)}]")
    if isinstance(policies, Mapping):
        return {DENSE: DENSE, **policies}
    return {DENSE: DENSE, **{p if isinstance(p, str) else f"policy {i}": p for i, p in enumerate(policies, 1)}}


def sizes(image: str | Size | Sequence[str | Size]) -> list[Size]:
    """Return (height, width) of every different image.

    Raises:
        ValueError: neither "WIDTHxHEIGHT" nor two whole numbers.
    """
    if isinstance(image, str):
        width, _, height = image.partition("x")
        if width.isdecimal() and height.isdecimal() and len(image) < 20:
            return [(int(height), int(width))]
    elif isinstance(image, Sequence) and len(image) == 2 and all(type(side) is int for side in image):
        return [(image[0], image[1])]  # type: ignore[list-item]
    elif isinstance(image, Sequence) and image and not all(isinstance(one, int) for one in image):
        return [size for one in image for size in sizes(one)]  # type: ignore[arg-type]
    raise ValueError(f"image must be WIDTHxHEIGHT or (height, width) in pixels, e.g. 1280x800, got {shown(image)}")


def seen(source: Source, image: Any, images: int) -> list[ImageTokens]:
    """Return what every image of the prompt becomes."""
    all_of_them = sizes(image) * images
    return [image_tokens(size, source.config, source.settings, alone=len(all_of_them) == 1) for size in all_of_them]


def predicted(
    name: str, one: Plan, parts: Parts, place: Device, dtype: str, new_tokens: int, batch: int, engine: str
) -> Prediction:
    """Predict for one policy on one device."""
    tower = [vision(parts.tower, one.images, one.encoded, batch), projection(parts, one.images, one.encoded, batch)]
    prompt, chosen = prefill(parts, one.lengths, batch), scoring(one, parts)
    held, size = kept(one, parts), BYTES[dtype]
    step = decode(parts, [n + new_tokens / 2 for n in held], batch)
    ends = cached(parts, [n + new_tokens for n in held]) * size
    most = max(ends, cached_prompt(one, parts, held) * size)
    room = working(one, parts, size)
    vision_s, score_s = time(tower, place, dtype, engine), batch * choosing(chosen, place)
    prefill_s, step_s = time(prompt, place, dtype, engine), time(step, place, dtype, engine)
    fixed = parts.parameters * size + (CONTEXT if place.overlaps else 0)
    return Prediction(
        policy=name,
        device=place.name,
        title=place.title,
        dtype=dtype,
        prompt_tokens=round(one.text + sum(p.tokens for p in one.images)),
        text_tokens=one.text,
        visual_tokens=sum(one.visual) / len(one.visual),
        vision_flops=total(tower).flops,
        scoring_flops=chosen.flops * batch,
        prefill_flops=total(prompt).flops,
        step_flops=total(step).flops,
        vision_ms=1e3 * vision_s,
        scoring_ms=1e3 * score_s,
        prefill_ms=1e3 * prefill_s,
        token_ms=1e3 * step_s,
        new_tokens=new_tokens,
        batch=batch,
        weights_bytes=round(parts.parameters * size),
        kv_bytes=round(ends),
        kv_peak_bytes=round(most),
        peak_bytes=round(fixed + batch * (most + room)),
        memory_bytes=round(place.memory),
        largest_batch=max(int((place.memory * USABLE - fixed) // (most + room)), 0),
        notes=(*one.notes, *said(chosen)),
    )


def kept(one: Plan, parts: Parts) -> list[float]:
    """Return the tokens of the prompt that each layer's cache keeps: evictions leave windows and states alone."""
    return [
        few if layer.kind == "full" else n for layer, n, few in zip(parts.layers, one.lengths, one.held, strict=True)
    ]


def cached_prompt(one: Plan, parts: Parts, held: Sequence[float]) -> float:
    """Count the numbers that one sample's cache holds at most while its prompt is read.

    Keys leave when their layer has run, so that one layer is whole at a time; adaptive budgets wait for all layers.
    """
    whole = cached(parts, one.lengths)
    if one.kv is None or one.kv.layer_budgets == "adaptive":
        return whole
    leaving = [
        0 if layer.shares_keys else per_token(layer) * (n - few)
        for layer, n, few in zip(parts.layers, one.lengths, held, strict=True)
    ]
    return cached(parts, held) + max(leaving)


def working(one: Plan, parts: Parts, size: int) -> float:
    """Return the bytes that one sample needs while it is read.

    These are the inputs and outputs of the widest block of tower or decoder.
    """
    patches = sum(sum(p.patches) for p in one.images) * one.encoded
    blocks = parts.tower.blocks.values / max(parts.tower.depth, 1)
    widest = max(layer.matrices.values * n for layer, n in zip(parts.layers, one.lengths, strict=True))
    return max(patches * blocks, widest) * size


def said(chosen: Scoring) -> tuple[str, ...]:
    return tuple(f"{what} is not priced" for what in chosen.unpriced)


__all__ = ["described", "estimate"]

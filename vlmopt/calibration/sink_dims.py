"""Find the hidden dimensions in which a model's sinks stand out, from what prompts showed, or that it has none.

A layer is massive where |x| exceeds 100 and 1000 times its median (Massive Activations in Large Language Models, arXiv
2402.17762). Dimensions are those of the first token there, or else of the visual token that is attended to most; they
count when few visual tokens stand out in them and get far more attention than the others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, median
from typing import Any

from vlmopt.attention_fix import SinkProfile
from vlmopt.attention_fix.sink_scores import auto_tau, published_dims

PEAK, CONTRAST, REACH = 100.0, 1000.0, 10.0
MOST_DIMS, MOST_TOKENS, ATTENTION, LAYERS = 6, 0.1, 5.0, 0.25
ALIKE, FEW = 0.5, 8
GOLDEN = 0x9E3779B1  # 2^32 over the golden ratio

Values = list[tuple[int, float]]  # (dimension, |x_c| / rms), falling


@dataclass
class Layer:
    """The stream that enters one layer in one prompt, and the attention that its visual tokens then get."""

    layer: int
    peak: float  # largest |x|
    middle: float  # median |x|
    reach: float  # largest norm of a token over the median norm
    first: Values  # of the first token
    image: int = 0  # visual tokens
    received: float = 0.0  # mean attention of a text row and head to all of them together
    standing: list[tuple[list[int], float, float]] = field(default_factory=list)  # dims, its attention, cosine to first
    attended: Values = field(default_factory=list)  # of the visual token that gets most attention


Look = list[Layer]  # one prompt


@dataclass
class Found:
    """Dimensions with the evidence for them, or none and the reason."""

    dims: tuple[int, ...] = ()
    reason: str = ""
    band: tuple[int, ...] = ()
    stats: dict[str, Any] = field(default_factory=dict)
    confirmed: list[int] = field(default_factory=list)  # layers


def sink_profile(facts: Mapping[str, Any], images: Sequence[Look], texts: Sequence[Look]) -> SinkProfile:
    """Return what all prompts show, and whether two disjoint halves show the same; doubts are `stats["warnings"]`.

    Args:
        facts: of the model. images: prompts with images, at least one. texts: prompts without.
    """
    tau = auto_tau(facts["hidden_size"])
    found = find(images, texts, tau)
    stats = {"texts": len(texts), **found.stats}
    if not found.dims:
        stats["reason"] = found.reason
    doubts = []
    if len(images) < FEW:
        doubts.append(f"{len(images)} images are few, take {FEW} or more")
    if len(images) > 1:
        halves = [find(those(images, i), those(texts, i), tau) for i in (0, 1)]
        stats["halves"] = [sorted(half.dims) for half in halves]
        if stats["halves"][0] != stats["halves"][1]:
            doubts.append("two halves of the images show other sink dimensions: {} and {}".format(*stats["halves"]))
    cosine = stats.get("cosine")
    if cosine is not None and cosine < ALIKE:
        doubts.append(f"visual sinks are little like the first token, mean |cosine| {cosine:.2f}")
    known = published_dims(facts)
    if known and set(known) != set(found.dims):
        doubts.append(f"for this model {sorted(known)} are published, {sorted(found.dims) or 'none'} were found")
    return SinkProfile(
        model=facts, samples=len(images), dims=found.dims, tau=tau, band=found.band if found.dims else (),
        first_layer=min(found.confirmed, default=None), stats=stats | {"warnings": doubts},
    )  # fmt: skip


def half(number: int) -> int:
    """Return 0 or 1: the half to which prompt `number` belongs; two neighbours are apart.

    The order within pairs looks random, for prompts of several kinds may come in turn.
    """
    pair, second = divmod(number, 2)
    return second ^ (pair * (pair + 1) * GOLDEN >> 31 & 1)


def those(looks: Sequence[Look], which: int) -> list[Look]:
    return [look for number, look in enumerate(looks) if half(number) == which]


def find(images: Sequence[Look], texts: Sequence[Look], tau: float) -> Found:
    """Find the sink dimensions that some prompts show."""
    prompts = [*images, *texts]
    numbers = [layer.layer for layer in prompts[0]]
    places, how = massive(prompts)
    if not places:
        contrast, peak = max((layer.peak / max(layer.middle, 1e-12), layer.peak) for look in prompts for layer in look)
        return Found(reason=f"no massive activations: |x| is at most {contrast:.3g} times its median, there {peak:.3g}")
    band = numbers[places[0]], numbers[places[-1]] + 1
    middle = places[len(places) // 4 : len(places) - len(places) // 4]
    sources = {
        "first token": [look[i].first for look in prompts for i in middle],
        "most attended visual token": [look[i].attended for look in images for i in middle],
    }
    reasons = []
    for origin, values in sources.items():
        dims = candidates(values, tau)
        if not dims:
            reasons.append(f"no dimension of the {origin} stands out")
            continue
        stats = confirm(images, places, frozenset(dims))
        layers = [numbers[i] for i in stats.pop("places")]
        if layers and len(layers) >= LAYERS * len(places):
            values_of = {str(c): round(u, 2) for c, u in dims.items()}
            stats = {"origin": origin, "band_by": how, "values": values_of, "layers": layers, **stats}
            return Found(tuple(sorted(dims)), "", band, stats, layers)
        reasons.append(f"visual tokens that stand out in {sorted(dims)}, those of the {origin}, are not sinks")
    return Found(reason="; ".join(reasons) + f", in layers {band[0]} to {band[1] - 1}")


def massive(prompts: Sequence[Look]) -> tuple[list[int], str]:
    """Return the longest run of layers with massive activations, as places in a look; empty without any."""
    depth = len(prompts[0])

    def middle(value: Callable[[Layer], float], i: int) -> float:
        return float(median(value(look[i]) for look in prompts))

    rules: dict[str, Callable[[int], bool]] = {
        "activations": lambda i: (
            middle(lambda layer: layer.peak, i) > PEAK
            and middle(lambda layer: layer.peak / max(layer.middle, 1e-12), i) > CONTRAST
        ),
        "norms": lambda i: middle(lambda layer: layer.reach, i) > REACH,
    }
    for how, rule in rules.items():
        runs: list[list[int]] = [[]]
        for i in range(depth):
            if rule(i):
                runs[-1].append(i)
            elif runs[-1]:
                runs.append([])
        if best := max(runs, key=len):
            return best, how
    return [], ""


def candidates(tokens: Sequence[Values], tau: float) -> dict[int, float]:
    """Return the dimensions whose median over tokens reaches tau, cut at the largest gap between one and the next."""
    known = [dict(values) for values in tokens]
    dims = {c for values in known for c in values}
    ranked = sorted(((median(values.get(c, 0.0) for values in known), c) for c in dims), reverse=True)
    count = min(sum(value >= tau for value, _ in ranked), MOST_DIMS)
    following = [value for value, _ in ranked[1:]] + [0.0]
    gaps = [ranked[i][0] / max(following[i], 1e-6) for i in range(count)]
    return {c: value for value, c in ranked[: gaps.index(max(gaps)) + 1]} if gaps else {}


def confirm(images: Sequence[Look], places: Sequence[int], dims: frozenset[int]) -> dict[str, Any]:
    """Return where visual tokens that stand out in `dims` are few and get much attention, in half of the images."""
    confirmed, per_image, attention, cosines = [], {}, {}, []
    for i in places:
        passed, counts, ratios, likeness = 0, [], [], []
        for layer in (look[i] for look in images):
            sinks = [token for token in layer.standing if dims.intersection(token[0])]
            others, own = layer.image - len(sinks), sum(token[1] for token in sinks)
            counts.append(len(sinks))
            if not sinks or not others:
                continue
            ratio = own / len(sinks) / max((layer.received - own) / others, 1e-12)
            ratios.append(ratio)
            likeness += [abs(token[2]) for token in sinks]
            passed += len(sinks) <= max(MOST_TOKENS * layer.image, 1) and ratio >= ATTENTION
        number = str(images[0][i].layer)
        per_image[number] = round(fmean(counts), 2)
        if ratios:
            attention[number] = round(median(ratios), 2)
        if 2 * passed >= len(images):
            confirmed.append(i)
            cosines += likeness
    cosine = fmean(cosines) if cosines else None
    return {"places": confirmed, "per_image": per_image, "attention_ratio": attention, "cosine": cosine}

"""What a policy gains against dense, in words: "1.7× faster", and "1.1× slower" where it is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

from vlmopt.measure import Measurement, Spread

ALIKE = 0.05  # of a time or a size: what differs by less is called the same


class Gain(NamedTuple):
    """One figure of a run, ready to be shown."""

    label: str
    value: str  # the gain itself
    detail: str  # what it is made of
    colour: Literal["green", "orange", "gray"]  # better, worse, the same or no matter
    about: str


def times(ratio: float, better: str, worse: str, same: str) -> str:
    """Say how many times better something became: "1.7× faster"; below 1 the other way round, near 1 `same`.

    Args:
        ratio: above 0; above 1 is better.
    """
    if abs(ratio - 1) < ALIKE:
        return same
    much = max(ratio, 1 / ratio)
    return f"{much:.1f}× {better if ratio > 1 else worse}"


def colour(ratio: float) -> Literal["green", "orange", "gray"]:
    """Return the colour of a ratio, of which more is better."""
    return "gray" if abs(ratio - 1) < ALIKE else "green" if ratio > 1 else "orange"


def gains(dense: Measurement, ours: Measurement) -> Iterator[Gain]:
    """Yield the figures of a policy in the order in which people ask for them."""
    before, after = dense.visual_tokens_kept, ours.visual_tokens_kept
    mean = float(ours.report.samples[0]["layer_average"])
    yield Gain(
        "Visual tokens",
        f"{before} → {after}" if before != after else f"{after}",
        f"{mean:.0f} a layer on average",
        colour(before / max(after, 1)) if before else "gray",
        "Left after the last cut; below it what a decoder layer sees on average.",
    )
    first = dense.ttft_ms, ours.ttft_ms
    yield timed("To the first token", *first, first[0].median / first[1].median, "ms", "With the vision tower.")
    if dense.decode_tokens_per_s is not None and ours.decode_tokens_per_s is not None:
        rates = dense.decode_tokens_per_s, ours.decode_tokens_per_s
        yield timed("Each token after it", *rates, rates[1].median / rates[0].median, "per s", "Tokens per second.")
    yield sized("KV cache", dense.report.kv_cache_bytes, ours.report.kv_cache_bytes, 2**10, "KiB", "Keys and values.")
    if dense.peak_memory_bytes is not None and ours.peak_memory_bytes is not None:
        about = f"Peak: {ours.peak_memory_kind}."
        yield sized("Memory", dense.peak_memory_bytes, ours.peak_memory_bytes, 2**20, "MiB", about)


def timed(label: str, before: Spread, after: Spread, ratio: float, unit: str, about: str) -> Gain:
    """Compare the medians of repeated runs; in grey where the runs do not tell them apart, as single ones never do."""
    once = before.p20 == before.p80 and after.p20 == after.p80
    alike = once or (before.p20 <= after.p80 and after.p20 <= before.p80)
    why = "One run each tells nothing apart from chance." if once else "They overlap, so the difference may be chance."
    spread = (
        f" Middle of the runs: {before.p20:.0f} to {before.p80:.0f}, then {after.p20:.0f} to {after.p80:.0f} {unit}."
    )
    return Gain(
        label,
        times(ratio, "faster", "slower", "as fast"),
        f"{before.median:.0f} → {after.median:.0f} {unit}",
        "gray" if alike else colour(ratio),
        f"{about}{spread} {why if alike else ''}".rstrip(),
    )


def sized(label: str, before: int, after: int, unit: int, name: str, about: str) -> Gain:
    """Compare two sizes in bytes."""
    ratio = before / after if before and after else 1.0
    detail = f"{before / unit:.0f} → {after / unit:.0f} {name}"
    return Gain(label, times(ratio, "smaller", "larger", "the same"), detail, colour(ratio), about)

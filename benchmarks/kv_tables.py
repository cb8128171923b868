"""The tables of docs/kv-cache.md, from results; blocks of seeds are pooled, differences paired over images."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from table_parts import markdown, measured_on, records, table

from vlmopt.metrics import paired_difference
from vlmopt.metrics.intervals import Interval

CHECKPOINTS = ("tiny-llava", "tiny-qwen")
BELOW = {"recall": "there", "precision": "names"}  # what names of classes that are there are divided by
CONTROL = "random_kv"
ASKED = ("recall", "questions")
LEAST_BLOCKS = 3  # of seeds, from which on a method is compared with the control
DEPTH, FULL = 28, 4  # layers of a 7B model, and those of them that read all keys
Rows = list[dict[str, Any]]


def newest_of_each(name: str, *fields: str) -> Rows:
    """Return the newest line for every combination of some fields that all of them have, in the order measured."""
    lines = [line for line in records(name) if all(field in line for field in fields)]
    return list({tuple(line[field] for field in fields): line for line in lines}.values())


def values(rows: Rows, field: str) -> list[Any]:
    """Return the different values of a field, in order."""
    return list(dict.fromkeys(row[field] for row in rows))


def those(rows: Rows, **given: Any) -> Rows:
    return [row for row in rows if all(row.get(key) == value for key, value in given.items())]


def per_image(rows: Rows, what: str) -> tuple[np.ndarray, np.ndarray]:
    """Return of every image what counts and out of how many: objects in captions, or answers to questions."""
    if what == "questions":
        right = np.concatenate([np.array(row["right"], dtype=float).reshape(row["images"], -1) for row in rows])
        return right.sum(1), np.full(len(right), float(right.shape[1]))
    top, bottom = (np.concatenate([np.array(row[key], dtype=float) for row in rows]) for key in ("found", BELOW[what]))
    return top, bottom


def against(rows: Rows, full: Rows, what: str) -> str:
    """Write a percentage, and how it differs from that of the whole on the same images, with its 95 % interval."""
    mine = per_image(rows, what)
    figure = f"{100 * mine[0].sum() / mine[1].sum():.1f}"
    return figure if rows == full else f"{figure} ({points(difference(rows, full, what), ', ')})"


def points(gap: Interval, between: str) -> str:
    """Write a difference in points with the ends of its interval: "−1.6, −5.0..+1.6"."""
    value, low, high = (f"{100 * end:+.1f}".replace("-", "−") for end in (gap.value, gap.low, gap.high))
    return f"{value}{between}{low}..{high}"


def difference(rows: Rows, full: Rows, what: str) -> Interval:
    """Return rows minus the whole's, on the blocks of seeds of these rows."""
    by_block = {row["block"]: row for row in full}
    return paired_difference(per_image([by_block[row["block"]] for row in rows], what), per_image(rows, what))


def later_questions(method: str, ratio: float) -> tuple[int, list[Interval]]:
    """Return on how many images a method was asked what it did not know, and how it differs from the full cache.

    Of tiny-qwen, then of tiny-llava.
    """
    rows = newest_of_each("kv_cache", "checkpoint", "method", "keep_ratio", "block")
    found = []
    for checkpoint in reversed(CHECKPOINTS):
        own = those(rows, checkpoint=checkpoint)
        mine = those(own, method=method, keep_ratio=ratio)
        found.append(difference(mine, those(own, method="full cache"), "questions"))
    return images(those(rows, method=method, keep_ratio=ratio)), found


def images(rows: Rows, **given: Any) -> int:
    """Return how many images a checkpoint was asked about, in all blocks of one cell; the fewest where they differ."""
    mine = those(rows, **given)
    return min(sum(row["images"] for row in those(mine, checkpoint=one)) for one in values(mine, "checkpoint"))


def last(rows: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Return the machine of the newest row."""
    machine: dict[str, Any] = max((row["machine"] for row in rows), key=lambda one: one["date"])
    return machine


def compared(rows: Rows, keys: Sequence[str], whole: dict[str, Any], asked: Sequence[str]) -> list[list[str]]:
    """Return, for every combination of `keys` in order, the figures of both checkpoints against the `whole` one's."""
    found = []
    for key in dict.fromkeys(tuple(row[name] for name in keys) for row in rows):
        cells = []
        for checkpoint in CHECKPOINTS:
            own = those(rows, checkpoint=checkpoint)
            mine = those(own, **dict(zip(keys, key, strict=True)))
            cells += [against(mine, those(own, **whole), what) for what in asked]
        found.append(cells)
    return found


@table("kv-answers")
def answers() -> str:
    rows = newest_of_each("kv_cache", "checkpoint", "method", "keep_ratio", "block")
    rows.sort(key=lambda row: -row["keep_ratio"])
    keys = ("keep_ratio", "method")
    body = []
    pairs = dict.fromkeys(tuple(row[name] for name in keys) for row in rows)
    for (ratio, method), cells in zip(pairs, compared(rows, keys, {"method": "full cache"}, ASKED), strict=True):
        own = those(rows, keep_ratio=ratio, method=method)
        size = sum(row["bytes"][1] for row in own) / sum(row["bytes"][0] for row in own)
        body.append([f"{100 * ratio:.0f} %", named(method), *cells, f"{100 * size:.0f} %", f"{images(own)}"])
    heads = [f"{checkpoint}: {what}" for checkpoint in CHECKPOINTS for what in ("captions", "questions")]
    return markdown(["keys", "method", *heads, "bytes", "images"], body) + measured_on(last(rows))


@table("kv-control")
def control() -> str:
    """Return how much better methods are than the control, where three blocks of seeds or more were asked."""
    rows = newest_of_each("kv_cache", "checkpoint", "method", "keep_ratio", "block")
    asked = [row for row in rows if row["method"] not in ("full cache", CONTROL)]
    body = []
    for ratio, method in dict.fromkeys((row["keep_ratio"], row["method"]) for row in asked):
        cells, seen = [], set()
        for checkpoint in CHECKPOINTS:
            own = those(rows, checkpoint=checkpoint, keep_ratio=ratio)
            mine, lots = those(own, method=method), those(own, method=CONTROL)
            enough = len(mine) >= LEAST_BLOCKS
            cells += [f"{points(difference(mine, lots, what), ' (')})" if enough else "" for what in ASKED]
            seen |= {images(mine)} if enough else set()
        if seen:
            body.append([f"{100 * ratio:.0f} %", named(method), *cells, f"{min(seen)}"])
    heads = [f"{checkpoint}: {what}" for checkpoint in CHECKPOINTS for what in ("captions", "questions")]
    return markdown(["keys", f"method less `{CONTROL}`", *heads, "images"], body) + measured_on(last(rows))


def named(method: str) -> str:
    """Write a method's name as code, and what is set beside it."""
    name, _, more = method.partition(",")
    return method if method == "full cache" else f"`{name}`{more}"


@table("kv-decode")
def decode() -> str:
    rows = newest_of_each("kv_cache", "speed", "keys")
    body = [
        [row["speed"], f"{row['keys']}", f"{row['ms']['all']:.1f} ms", f"{row['ms']['a tenth']:.1f} ms",
         f"{row['ratio']:.2f}", f"{row['limit']:.2f}"]
        for row in rows
    ]  # fmt: skip
    return markdown(["decoder", "keys", "all", "a tenth", "ratio", "limit"], body) + measured_on(last(rows))


@table("grouped-decode")
def grouped() -> str:
    rows = those(newest_of_each("grouped_decode", "dtype", "shape", "batch", "keys"), batch=1)
    keys = sorted(values(rows, "keys"))
    body = []
    for dtype, shape in dict.fromkeys((row["dtype"], row["shape"]) for row in rows):
        own = {row["keys"]: row for row in those(rows, dtype=dtype, shape=shape)}
        ratios = [f"{own[n]['ratio']:.1f} ({own[n]['low']:.1f}–{own[n]['high']:.1f})" if n in own else "" for n in keys]
        body.append([f"{shape} ({dtype})", *ratios])
    head = ["query heads, key heads, width", *(f"{n} keys" for n in keys)]
    return markdown(head, body) + measured_on(last(rows))


@table("kv-tiers")
def tiers() -> str:
    rows = newest_of_each("decode_ideas", "checkpoint", "method", "block")
    body = [
        [name, f"{statistics.mean(row['bits'] for row in those(rows, method=name)):.1f}", *cells]
        for name, cells in zip(
            values(rows, "method"), compared(rows, ["method"], {"method": "full cache"}, ["questions"]), strict=True
        )
    ]
    heads = [f"{checkpoint}: questions" for checkpoint in CHECKPOINTS]
    seen = f"{images(rows, method='full cache')} images"
    return markdown(["cache", "bits a number", *heads], body) + measured_on(last(rows), seen)


def by_share(rows: Rows, name: str) -> list[list[str]]:
    """Return one line per share that is kept, under `name` in the results: what captions lose against all of it."""
    found = compared(rows, [name], {name: 1.0}, ("recall", "precision"))
    return [[f"{100 * share:g} %", *cells] for share, cells in zip(values(rows, name), found, strict=True)]


@table("few-neurons")
def neurons() -> str:
    rows = newest_of_each("decode_ideas", "checkpoint", "share", "block")
    body = by_share(rows, "share")
    heads = [f"{checkpoint}: {what}" for checkpoint in CHECKPOINTS for what in BELOW]
    return markdown(["neurons", *heads], body) + measured_on(last(rows), f"{images(rows, share=1.0)} images")


@table("decode-ideas-speed")
def ideas_speed() -> str:
    rows = newest_of_each("decode_ideas", "of")
    head = ["as it is", "with the idea", "once, beforehand"]
    body = [[row["of"], *(f"{row['ms'][name]:.2f} ms" if name in row["ms"] else "" for name in head)] for row in rows]
    return markdown(["", *head], body) + measured_on(last(rows))


@table("reading-answers")
def reading() -> str:
    rows = newest_of_each("sparse_reading", "checkpoint", "keep_ratio", "block")
    body = by_share(rows, "keep_ratio")
    heads = [f"{checkpoint}: {what}" for checkpoint in CHECKPOINTS for what in BELOW]
    return markdown(["keys read", *heads], body) + measured_on(last(rows), f"{images(rows, keep_ratio=1.0)} images")


@table("reading-speed")
def reading_speed() -> str:
    rows = newest_of_each("sparse_reading", "keys")
    body = []
    for row in rows:
        ms = row["ms"]
        mixed = (FULL * ms["all, choosing"] + (DEPTH - FULL) * ms["chosen"]) / DEPTH
        times = [f"{ms[name]:.2f} ms" for name in ("kernel", "grouped", "all, choosing", "chosen")]
        body.append([f"{row['keys']}", f"{row['read']}", *times, f"{ms['grouped'] / mixed:.1f}"])
    head = ["keys", "read", "kernel", "grouped", "all, choosing", "chosen", f"{FULL} of {DEPTH} layers read all"]
    return markdown(head, body) + measured_on(last(rows))

"""What works on which family: one check for every cell of the table in the docs.

A cell is "yes" where the check passed, "no" where the library refuses before anything is changed, "" where the family
has no such thing. Whatever else happens is a fault.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch

import vlmopt
from tests.support import evicted, oracle
from tests.support.corrections import made
from tests.support.families import FAMILIES, Family, Image, Video
from tests.support.mechanism import TOLERANCE, forward, gap, generate
from tests.support.more_families import MORE
from vlmopt import kv
from vlmopt.kernels.patterns import MinP
from vlmopt.prefill import SparsePrefill
from vlmopt.pruning import Resize, Selector, Uniform, VisPruner

EVERY: dict[str, Family] = {**FAMILIES, **MORE}
ROWS: list[list[Any]] = [[5, Image(0), 7], [3, Image(1), 6], [9]]
EVERYTHING = SparsePrefill(
    pattern=MinP(tau=1e-30, tile=16, run=16), min_len=1, dense_layers=0, dense_text=0, max_work=100
)
YES, NO, NONE = "yes", "no", ""


def cut(kind: str) -> Callable[[Family], str]:
    """Kept rows equal the reference's."""

    def run(family: Family) -> str:
        oracle.check(family, oracle.RAGGED, kind)
        return YES

    return run


def video(family: Family) -> str:
    """So do those of a video."""
    if not family.videos:
        return NONE
    for kind in ("pre", "mid"):
        oracle.check(family, [[4, Video(0), 5]], kind)
    return YES


def works(policy: Any) -> Callable[[Family], str]:
    """A selector keeps what it was asked for, says the same twice, and leaves nothing behind; or is refused."""

    def run(family: Family) -> str:
        model, batch = copy.deepcopy(family.build()), family.inputs(ROWS[:2])
        dense = forward(model, batch)
        try:
            vlmopt.optimize(model, policy)
        except ValueError:
            assert torch.equal(forward(model, batch), dense)
            return NO
        logits = forward(model, batch)
        for sample in vlmopt.report(model).samples:
            assert 0 < sample["visual_tokens_kept"] < sample["visual_tokens"]
        assert torch.equal(forward(model, batch), logits)
        assert torch.equal(forward(vlmopt.restore(model), batch), dense)
        return YES

    return run


def correction(family: Family) -> str:
    """Rows of samples with images change, those of the sample without one do not."""
    model, batch = copy.deepcopy(family.build()), family.inputs(ROWS)
    with vlmopt.optimized(model, "dense"):
        dense = torch.stack(generate(model, batch).logits, 1)
    try:
        vlmopt.optimize(model, vlmopt.Policy(attention=[made("image_boost-easy", family)]))
    except ValueError:
        return NO
    logits = torch.stack(generate(model, batch).logits, 1)
    assert gap(logits[2], dense[2]) < 1e-5  # experts multiply rows of all samples together
    assert gap(logits[:2], dense[:2]) > TOLERANCE
    return YES


def sparse(family: Family) -> str:
    """A pattern that keeps every key is dense attention; where it cannot run, the report says why."""
    model, batch = copy.deepcopy(family.build()), family.inputs(ROWS)
    dense = forward(model, batch)
    try:
        vlmopt.optimize(model, vlmopt.Policy(prefill=EVERYTHING))
    except ValueError:
        return NO
    assert gap(forward(model, batch)[batch.real], dense[batch.real]) < TOLERANCE
    report = vlmopt.report(model)
    assert report.prefill or report.skipped
    return YES if report.prefill else NO


def eviction(family: Family) -> str:
    """Decoding equals a full cache with a mask per head."""
    try:
        evicted.check(evicted.Evicted(family, kv.VLCache(keep_ratio=0.4, recent=2)), family.inputs(ROWS))
    except ValueError:
        return NO
    return YES


PADDED: Selector = Uniform(keep_ratio=0.5, padding="blank")
CELLS: dict[str, Callable[[Family], str]] = {
    "before the LLM": cut("pre"),
    "inside": cut("mid"),
    "PosPad": cut("pre-pospad"),
    "video": video,
    "tower attention": works(VisPruner(keep_ratio=0.4, tower_layer=-1)),
    "pixels": works(PADDED),
    "resize": works(Resize(keep_ratio=0.4)),
    "corrections": correction,
    "sparse prefill": sparse,
    "KV eviction": eviction,
}

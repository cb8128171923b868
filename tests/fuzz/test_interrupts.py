"""Ctrl-C at any touch point of a call leaves nothing behind: calls are watched to find them, then ended there.

A touch point is the first or the last entry into a function, of the library, of the model or of `generate`.
"""

from __future__ import annotations

import copy
import functools
import gc
import inspect
import sys
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest
import torch
import transformers
from hypothesis import settings

import vlmopt
from tests.support.corrections import made
from tests.support.families import FAMILIES, Batch, Image
from tests.support.mechanism import forward, generate
from tests.support.snapshot import differences, snapshot
from vlmopt import kv, pruning
from vlmopt.api import session_of
from vlmopt.kernels import patterns
from vlmopt.prefill import SparsePrefill
from vlmopt.reading import SparseReading
from vlmopt.runtime.call import CALL, STEP, Call
from vlmopt.runtime.hooks.head import ASKED

pytestmark = pytest.mark.usefixtures("untrained_scorer")
ROOT = Path(vlmopt.__file__).parents[1]
TRANSFORMERS = Path(transformers.__file__).parent
WATCHED = tuple(
    f"{folder}/"
    for folder in (
        *(ROOT / name for name in ("vlmopt", "pruning", "attention_fix")),
        *(TRANSFORMERS / name for name in ("models", "generation")),
    )
)
Point = tuple[CodeType, int]  # a function, and which of its entries


@dataclass
class Watch:
    """A trace function that counts entries into functions, and ends the call at one of them."""

    at: Point | None = None
    entered: Counter[CodeType] = field(default_factory=Counter)

    def __call__(self, frame: FrameType, event: str, arg: Any) -> None:
        code = frame.f_code
        generator = code.co_flags & inspect.CO_GENERATOR  # entered to be closed, too, which lets nothing out
        if event == "call" and not generator and code.co_filename.startswith(WATCHED):
            self.entered[code] += 1
            if (code, self.entered[code]) == self.at:
                raise KeyboardInterrupt

    @contextmanager
    def watching(self) -> Iterator[None]:
        before = sys.gettrace()
        sys.settrace(self)
        try:
            yield
        finally:
            sys.settrace(before)

    @property
    def points(self) -> list[Point]:
        found = [(code, entry) for code, count in self.entered.items() for entry in sorted({1, count})]
        return found[:: -(-len(found) // (settings.default.max_examples // 4))]


def points_of(run: Callable[[], Any]) -> list[Point]:
    watch = Watch()
    with watch.watching():
        run()
    return watch.points


def interrupted(run: Callable[[], Any], at: Point) -> bool:
    """Run up to a touch point; return whether it was reached."""
    try:
        with Watch(at).watching():
            run()
    except KeyboardInterrupt:
        return True
    return False


def named(at: Point) -> str:
    code, entry = at
    return f"entry {entry} of {code.co_name}, {code.co_filename}:{code.co_firstlineno}"


class Streamer:
    """Takes tokens as they come."""

    def put(self, value: torch.Tensor) -> None:
        assert value.numel()

    def end(self) -> None: ...


def train(model: Any, batch: Batch) -> torch.Tensor:
    """Return gradients of a training step, layers checkpointed."""
    model.zero_grad()
    model.train()
    if not model.is_gradient_checkpointing:
        model.gradient_checkpointing_enable()
    model(**batch(), labels=batch.ids.masked_fill(batch.visual, -100)).loss.backward()
    model.eval()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def written(model: Any, batch: Batch, **settings: Any) -> torch.Tensor:
    return torch.cat(generate(model, batch, max_new_tokens=3, **settings).logits)


def streamed(model: Any, batch: Batch) -> torch.Tensor:
    return written(model, batch, streamer=Streamer())


def uncached(model: Any, batch: Batch) -> torch.Tensor:
    return written(model, batch, use_cache=False)


def beams(model: Any, batch: Batch) -> torch.Tensor:
    return generate(model, batch, max_new_tokens=3, num_beams=2).sequences


def looked_up(model: Any, batch: Batch) -> torch.Tensor:
    return written(model, batch, prompt_lookup_num_tokens=2)


def in_chunks(model: Any, batch: Batch) -> torch.Tensor:
    return written(model, batch, prefill_chunk_size=12)


ALONE = (looked_up, in_chunks)  # take no batch
SPARSE = SparsePrefill(pattern=patterns.XAttention(tile=16, run=16), min_len=1, max_work=1e9)
Case = tuple[str, Callable[[Any], Any], Callable[[Any, Batch], torch.Tensor]]
CASES: dict[str, Case] = {
    "tower and layers": (
        "llava",
        lambda f: [pruning.VisionZip(keep_ratio=0.5, tower_layer=-1), pruning.FastV(keep_ratio=0.5, layer=2)],
        streamed,
    ),
    "eviction behind cuts and corrections": (
        "llava",
        lambda f: vlmopt.Policy(
            prune=[pruning.SparseVLM(keep_ratio=0.5, layers=(1, 3))],
            attention=[made("visual_sink-easy", f)],
            kv=kv.VLCache(keep_ratio=0.4, per_head=False, mix=True),
        ),
        written,
    ),
    "eviction per head": ("qwen3_vl", lambda f: kv.SnapKV(keep_ratio=0.3, layer_budgets="pyramid"), beams),
    "projector": ("qwen2_5_vl", lambda f: [pruning.ZeroOrder(keep_ratio=0.5)], written),
    "first pass": ("qwen3_vl", lambda f: [pruning.FirstPass(keep_ratio=0.5, positions="pospad")], written),
    "cells and neurons": (
        "qwen2_vl",
        lambda f: [pruning.PixelRedundancy(keep_ratio=0.5), pruning.CoreMatching(layer=2)],
        uncached,
    ),
    "smaller images, sparse": (
        "qwen2_5_vl",
        lambda f: vlmopt.Policy(prune=[pruning.Resize(keep_ratio=0.5)], prefill=SPARSE),
        written,
    ),
    "streams of text": (
        "llava",
        lambda f: vlmopt.Policy(attention=[made("vision_heads-hard", f), made("informed_tokens-hard", f)]),
        written,
    ),
    "generated text": (
        "llava",
        lambda f: vlmopt.Policy(
            prune=[pruning.HoloV(keep_ratio=0.5, tower_layer=-1)],
            attention=[made("generated_text-hard", f), made("sink_diagnosis-easy", f)],
            gqa="grouped",
        ),
        looked_up,
    ),
    "sparse reading": (
        "llava",
        lambda f: vlmopt.Policy(
            prune=[pruning.FastV(keep_ratio=0.5, layer=2)], read=SparseReading(keep_ratio=0.2, least=4, min_keys=1)
        ),
        written,
    ),
    "chunks": ("llava", lambda f: vlmopt.Policy(prune=[pruning.Random(keep_ratio=0.5, layer=1)]), in_chunks),
    "a scorer": ("qwen2_5_vl", lambda f: [pruning.FocusUI(keep_ratio=0.5, scorer="untrained")], forward),
    "a training step": ("llava", lambda f: [pruning.FastV(keep_ratio=0.5, layer=2)], train),
}


def prompt(case: str) -> Batch:
    name, _, run = CASES[case]
    rows: Any = [[5, Image(0), 7], [3, Image(1), 16]]
    return FAMILIES[name].inputs(rows[:1] if run in ALONE else rows)


def calls_alive(model: Any) -> int:
    session = session_of(model)
    gc.collect()
    return sum(issubclass(type(thing), Call) and thing.session is session for thing in gc.get_objects())


@pytest.mark.parametrize("case", CASES)
def test_a_call_ended_anywhere(case):
    """The next call is right, nothing is kept alive, and the model can be given back."""
    name, policy, run = CASES[case]
    batch, model = prompt(case), FAMILIES[name].fresh()
    call = functools.partial(run, model, batch)
    call()
    before = snapshot(model)
    vlmopt.optimize(model, policy(FAMILIES[name]))
    expected = call()  # modules are imported once in a process
    vlmopt.optimize(model, policy(FAMILIES[name]))
    points = points_of(call)
    for at in points:
        # Methods too are made anew, so that what is known from an earlier call is found again.
        vlmopt.optimize(model, policy(FAMILIES[name]))
        assert interrupted(call, at), named(at)
        assert (CALL.get(), STEP.get(), ASKED.get()) == (None, None, None), named(at)
        assert at != points[-1] or calls_alive(model) == 0
        assert torch.equal(call(), expected), named(at)
    vlmopt.restore(model)
    assert differences(before, snapshot(model)) == []
    gone = weakref.ref(model)
    del model, before, call
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("case", CASES)
def test_optimize_and_restore_ended_anywhere(case):
    """Afterwards the model is as it was, or `restore` makes it so."""
    name, policy, _ = CASES[case]
    methods, model = policy(FAMILIES[name]), copy.deepcopy(FAMILIES[name].build())
    forward(model, prompt(case))
    before = snapshot(model)
    optimize, restore = functools.partial(vlmopt.optimize, model, methods), functools.partial(vlmopt.restore, model)
    for at in points_of(optimize):
        restore()
        assert interrupted(optimize, at), named(at)
        assert differences(before, snapshot(model)) == [], named(at)
    optimize()
    for at in points_of(restore):
        optimize()
        assert interrupted(restore, at), named(at)
        restore()
        assert differences(before, snapshot(model)) == [], named(at)

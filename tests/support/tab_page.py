"""Tabs of the demo without a browser: runs on the bundled model, a page of some tabs, and what it shows."""

from __future__ import annotations

import itertools
import time
from functools import cache
from typing import Any

import pytest
from PIL import Image
from streamlit.testing.v1 import AppTest

import vlmopt
from vlmopt.apps.page import models, running
from vlmopt.apps.page.state import About, Outcome, Request, Run, Source
from vlmopt.loading import Loaded
from vlmopt.measure import Measurement, Spread
from vlmopt.synthetic import screen

TABS = ("scores", "layers", "sinks", "heads", "sparse", "ledger", "pareto", "savings", "look")
NUMBERS = itertools.count()
WAIT = 60.0  # seconds for a piece of work on a busy machine


@cache
def loaded() -> Loaded:
    model, processor = vlmopt.load_checkpoint("tiny-qwen", dtype="float32")
    return Loaded("tiny-qwen", model, processor)


@cache
def drawn() -> Image.Image:
    return screen(3, (112, 112)).image


@cache
def prompt() -> running.Prompt:
    request = Request(Source(), vlmopt.Policy(), "Click Save.", (drawn(),))
    return running.prepared(loaded().model, loaded().processor, request)


def outcome(policy: Any, answer: str) -> Outcome:
    """What one variant leaves, from a single run of two tokens."""
    inputs = prompt().inputs
    with vlmopt.optimized(loaded().model, policy) as model:
        ids = model.generate(**inputs, max_new_tokens=2, do_sample=False)
        report = vlmopt.report(model)
    sample, first = report.samples[0], Spread.of([report.ms["ttft"]])
    counts = [sample[key] for key in ("prompt_tokens", "visual_tokens", "visual_tokens_kept", "markers")]
    found = Measurement(
        *counts, first, None, first, 2**20, 0, "counted", ids[:, inputs["input_ids"].shape[1] :], report
    )
    return Outcome(answer, found)


@cache
def dense() -> Outcome:
    return outcome(vlmopt.Policy(), "(7, 7)")


def run_of(policy: Any, answer: str = "(7, 7)") -> Run:
    """What pressing Run leaves."""
    policy = vlmopt.Policy.load(policy)
    request = Request(Source(), policy, "Click Save.", (drawn(),), max_new_tokens=3)
    about = About("tiny-qwen", "qwen2_5_vl", 1, 6, 4)
    return Run(f"run{next(NUMBERS)}", request, dense(), outcome(policy, answer), prompt().shown, about)


def page(run: Run, *tabs: str) -> AppTest:
    def script(run, tabs):
        import importlib

        from vlmopt.apps.page.running import Worker

        for name in tabs:
            importlib.import_module(f"apps.page.tabs.{name}").show(run, Worker(run.request.source))

    return AppTest.from_function(script, default_timeout=WAIT, kwargs={"run": run, "tabs": tabs}).run()


def pressed(test: AppTest, label: str) -> AppTest:
    """Press a button and wait until the work behind it is done."""
    next(button for button in test.button if button.label.startswith(label)).click().run()
    until = time.monotonic() + WAIT
    while any(button.label == "Stop" for button in test.button):
        assert time.monotonic() < until, "the work does not end"
        time.sleep(0.05)
        test.run()
    return fine(test)


def fine(test: AppTest) -> AppTest:
    assert not test.exception, [e.value for e in test.exception]
    return test


def said(test: AppTest) -> str:
    """All words of the page but tables."""
    kinds = (test.markdown, test.caption, test.info, test.warning, test.success)
    return "\n".join(element.value for kind in kinds for element in kind)


def charts(test: AppTest) -> int:
    return len(test.get("vega_lite_chart"))


def images(test: AppTest) -> int:
    return len(test.get("image"))


@pytest.fixture
def one_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page works on the model that the tests have loaded."""
    monkeypatch.setattr(models, "load", lambda *args, **options: loaded())

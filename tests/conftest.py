"""One thread and no network for every test."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # read when transformers is imported
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import pytest
import torch

torch.set_num_threads(1)
MAIN = sys.modules["__main__"]


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _own_main() -> None:
    """Put back `__main__`: Streamlit's tests leave a script of theirs there, which a spawned process would run."""
    sys.modules["__main__"] = MAIN


@pytest.fixture
def untrained_scorer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Methods may name the scorer "untrained"."""
    from tests.support.untrained import loading
    from vlmopt import scorers

    monkeypatch.setattr(scorers, "load", loading(scorers.load))


@pytest.fixture
def quanto(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let optimum-quanto unpack without the C++ that it would compile first; skip where it is not installed."""
    pytest.importorskip("optimum.quanto")
    from types import SimpleNamespace

    from optimum.quanto.library.extensions.extension import get_extension

    def unpack(packed: torch.Tensor, bits: int) -> torch.Tensor:
        return torch.cat([(packed >> bits * i) & (2**bits - 1) for i in range(8 // bits)])

    monkeypatch.setattr(get_extension("quanto_cpp"), "_lib", SimpleNamespace(unpack=unpack))


@pytest.fixture(scope="module")  # Playwright runs once at a time in a thread
def browser() -> Iterator[Any]:
    """A real browser."""
    from vlmopt.synthetic.web import find_browser

    drive = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if (found := find_browser()) is None:
        pytest.skip("no chromium is installed (apt-get install chromium)")
    with drive.sync_playwright() as engine:
        opened = engine.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield opened
        opened.close()

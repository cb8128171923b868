"""One thread and no network for every test."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read when transformers is imported
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def untrained_scorer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Methods may name the scorer "untrained"."""
    from tests.untrained import loading
    from vlmopt import scorers

    monkeypatch.setattr(scorers, "load", loading(scorers.load))

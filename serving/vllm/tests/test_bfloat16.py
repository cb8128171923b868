"""Qwen3.5, whose linear attention vLLM computes on CPUs in bfloat16 alone, against transformers in bfloat16."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from .choices import Choices, same_rows
from .engines import Reference
from .test_parity import TEXT
from .test_video import BEFORE, WHAT, clip, expected, served

ROUNDING = 0.1  # of log-probabilities of random weights
EARLY = [
    {"method": "uniform", "keep_ratio": 0.25},
    {"method": "random", "keep_ratio": 0.5},
    {"method": "pixel_redundancy"},
    {"method": "uniform", "keep_ratio": 0.25, "positions": "pospad"},
]
LATE = [
    {"method": "div_prune", "keep_ratio": 0.25},
    {"method": "vision_zip", "keep_ratio": 0.25, "tower_layer": -2},
    [{"method": "pixel_redundancy"}, {"method": "div_prune", "keep_ratio": 0.2}],
]


def apart(ours: Any, theirs: Any) -> float:
    """Between first tokens: later ones may follow other words."""
    return abs(ours.logprobs[0] - theirs.logprobs[0]) if ours.ids[0] == theirs.ids[0] else float("inf")


@pytest.fixture
def reference(checkpoints):
    reference = Reference(checkpoints("qwen3_5"))
    reference.model.to(torch.bfloat16)
    return reference


def test_images_and_videos_of_qwen3_5(engine_of, reference, framed, monkeypatch):
    engine, choices, wrong = engine_of("qwen3_5", dtype="bfloat16"), Choices(monkeypatch), []
    for policy in [None, *EARLY, *LATE]:
        ours, made = choices.of(engine.ask, TEXT, framed[0], policy=policy)
        theirs, other = choices.of(reference.ask, TEXT, framed[0], policy=policy)
        if policy in LATE and not same_rows(made[0], other[0]):
            with choices.repeating(made[0]):
                theirs = reference.ask(TEXT, framed[0], policy=policy)
        wrong += [(policy, ours, theirs)] if ours.prompt != theirs.prompt or apart(ours, theirs) > ROUNDING else []
    film = clip(224, 112)
    for policy in [None, *BEFORE]:
        ours, theirs = served(engine, WHAT, film, policy), expected(reference, WHAT, film, policy)
        wrong += [(policy, ours, theirs)] if ours.prompt != theirs.prompt or apart(ours, theirs) > ROUNDING else []
    assert not wrong, "\n".join(map(str, wrong))

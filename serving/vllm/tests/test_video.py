"""Videos: answers of vlmopt on transformers, positions on prefix hits, and what vLLM's own EVS makes of a tall clip."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from .engines import Reference, same

TEXT = "<|user|><|vision_start|><|video_pad|><|vision_end|>{}<|assistant|>"
WHAT, YELLOW = TEXT.format("What is in the picture?"), TEXT.format("Is there a yellow square?")
EVS = {"method": "evs", "keep_ratio": 0.4}
POLICIES = [
    EVS,
    {"method": "uniform", "keep_ratio": 0.25},
    {"method": "div_prune", "keep_ratio": 0.25},
    {"method": "vision_zip", "keep_ratio": 0.25, "tower_layer": -1},
    {"method": "pixel_redundancy"},
    [{"method": "pixel_redundancy"}, {"method": "evs", "keep_ratio": 0.5}],
    {"method": "uniform", "keep_ratio": 0.25, "positions": "pospad"},
]
BEFORE = [
    {"method": "uniform", "keep_ratio": 0.25},
    {"method": "random", "keep_tokens": 3},  # some frames lose all rows
    {"method": "pixel_redundancy"},
]


def clip(width: int, height: int, frames: int = 8) -> tuple[np.ndarray, dict[str, Any]]:
    """A still background, and a square that moves from the fourth frame on."""
    picture = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    film = np.stack([picture] * frames)
    for i in range(frames // 2, frames):
        film[i, 10:50, 10 * i : 10 * i + 40] = 255
    facts = {"fps": 2.0, "duration": frames / 2, "total_num_frames": frames, "frames_indices": list(range(frames))}
    return film, {**facts, "video_backend": "opencv"}


def served(engine: Any, text: str, film: Any, policy: Any) -> Any:
    array, facts = film
    return engine.ask(text, video=(array, {**facts, "do_sample_frames": False}), policy=policy)


def expected(reference: Any, text: str, film: Any, policy: Any) -> Any:
    array, facts = film
    return reference.ask(text, policy=policy, videos=[array], video_metadata=[facts], do_sample_frames=False)


@pytest.mark.parametrize("size", [(224, 112), (112, 224)])
def test_answers_are_those_of_vlmopt_on_transformers(engine_of, checkpoints, size):
    engine, reference = engine_of("qwen2_5_vl"), Reference(checkpoints("qwen2_5_vl"))
    film, wrong = clip(*size), []
    for policy in [None, *POLICIES]:
        ours, theirs = served(engine, WHAT, film, policy), expected(reference, WHAT, film, policy)
        if not same(ours, theirs) or ours.prompt != theirs.prompt:
            wrong.append((policy, ours, theirs))
    assert not wrong


@pytest.mark.parametrize("policy", POLICIES)
def test_a_cached_prefix_gives_the_answer_of_a_cold_run(engine_of, policy):
    engine, film = engine_of("qwen2_5_vl"), clip(112, 224)
    engine.llm.reset_prefix_cache()
    cold = served(engine, YELLOW, film, policy)
    engine.llm.reset_prefix_cache()
    served(engine, WHAT, film, policy)
    warm = served(engine, YELLOW, film, policy)
    assert warm.cached > 0
    assert same(warm, cold)


def test_frames_with_time_stamps_between_them_are_cut_before_the_encoder_or_not_at_all(engine_of, checkpoints):
    engine, reference = engine_of("qwen3_vl"), Reference(checkpoints("qwen3_vl"))
    film, wrong = clip(224, 112), []
    for policy in [None, *BEFORE]:
        ours, theirs = served(engine, WHAT, film, policy), expected(reference, WHAT, film, policy)
        if not same(ours, theirs) or ours.prompt != theirs.prompt:
            wrong.append((policy, ours, theirs))
    assert not wrong
    for policy in (EVS, {"method": "uniform", "keep_ratio": 0.25, "positions": "pospad"}):
        with pytest.raises(ValueError, match="time stamps stand between the frames"):
            served(engine, WHAT, film, policy)

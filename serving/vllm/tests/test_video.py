"""Videos: answers of vlmopt on transformers, also on prefix hits, and the rows that vLLM's own EVS keeps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from vllm.multimodal.video_prune.evs import compute_retention_mask

from vlmopt.pruning import EVS as EvsSelector
from vlmopt.pruning import VisualEmbeds, VisualTokens
from vlmopt_vllm.positions import cells_of

from .engines import Reference, same

TEXT, BARE = (
    "<|user|><|vision_start|><|video_pad|><|vision_end|>{}<|assistant|>",
    "<|user|><|video_pad|>{}<|assistant|>",
)
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

SQUARE = [
    {"method": "uniform", "keep_ratio": 0.25, "positions": "repack"},
    {"method": "div_prune", "keep_ratio": 0.25, "positions": "repack"},
    {"method": "evs", "keep_ratio": 0.4, "positions": "repack"},
]


def clip(width: int, height: int, frames: int = 8) -> tuple[np.ndarray, dict[str, Any]]:
    """A background under a grain, so that few choices are ties, and a square that moves from the fourth frame on."""
    rng = np.random.default_rng(0)
    image, grain = rng.integers(20, 235, (height, width, 3)), rng.integers(-20, 21, (frames, height, width, 3))
    film = (image + grain).astype(np.uint8)
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


def differing(engine: Any, reference: Any, text: str, film: Any, policies: list[Any]) -> list[Any]:
    wrong = []
    for policy in [None, *policies]:
        ours, theirs = served(engine, text, film, policy), expected(reference, text, film, policy)
        if not same(ours, theirs) or ours.prompt != theirs.prompt:
            wrong.append((policy, ours, theirs))
    return wrong


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl"])
@pytest.mark.parametrize("size", [(224, 112), (112, 224)])
def test_answers_are_those_of_vlmopt_on_transformers(name, engine_of, checkpoints, size):
    engine, reference = engine_of(name), Reference(checkpoints(name))
    assert not differing(engine, reference, WHAT, clip(*size), POLICIES)


@pytest.mark.parametrize("name", ["qwen2_5_vl"])
@pytest.mark.parametrize("policy", POLICIES)
def test_a_cached_prefix_gives_the_answer_of_a_cold_run(name, engine_of, policy):
    engine, film = engine_of(name), clip(112, 224)
    engine.llm.reset_prefix_cache()
    cold = served(engine, YELLOW, film, policy)
    engine.llm.reset_prefix_cache()
    served(engine, WHAT, film, policy)
    warm = served(engine, YELLOW, film, policy)
    assert warm.cached > 0
    assert same(warm, cold)


@pytest.mark.parametrize("name", ["qwen3_vl"])
def test_frames_with_time_stamps_between_them_are_cut_before_the_encoder_or_not_at_all(name, engine_of, checkpoints):
    engine, reference, film = engine_of(name), Reference(checkpoints(name)), clip(224, 112)
    assert not differing(engine, reference, WHAT, film, BEFORE)
    for policy in (EVS, {"method": "uniform", "keep_ratio": 0.25, "positions": "pospad"}):
        with pytest.raises(ValueError, match="words stand between the frames"):
            served(engine, WHAT, film, policy)


def test_evs_keeps_the_rows_that_vllms_own_keeps_at_the_same_count():
    grid = (5, 6, 4)
    rows = torch.randn(grid[1] * grid[2], 32, generator=torch.Generator().manual_seed(0)).repeat(5, 1)
    rows += torch.linspace(0, 1, 120)[:, None] * torch.randn(120, 32, generator=torch.Generator().manual_seed(1))
    theirs = compute_retention_mask(rows, grid, spatial_merge_size=1, q=0.6).nonzero()[:, 0]
    tokens = VisualTokens(
        total=120, ordinal=torch.arange(120), item=torch.zeros(120, dtype=torch.long), coords=cells_of(grid),
        grids=(grid,), signals={VisualEmbeds(): rows}, seed=0,
    )  # fmt: skip
    assert torch.equal(EvsSelector(keep_ratio=0.4).select(tokens).keep, theirs)


@pytest.mark.parametrize("name", ["qwen2_5_vl"])
def test_an_engine_without_the_key_prunes_videos_by_vllms_own_means(name, engine_of):
    film = clip(224, 112)  # wide, in whole seconds: vLLM's positions are right
    ours = served(engine_of(name), WHAT, film, EVS)
    theirs = served(engine_of(name, "absent", beside=True, video_pruning_rate=0.6), WHAT, film, "engine")
    assert theirs.prompt == ours.prompt
    assert same(theirs, ours)


@pytest.mark.parametrize("name", ["internvl"])
def test_frames_of_internvl_are_cut_before_the_encoder_too(name, engine_of, checkpoints):
    engine, reference = engine_of(name), Reference(checkpoints(name))
    text, film = BARE.format("What?"), clip(112, 112)
    assert not differing(
        engine, reference, text, film, [{**SQUARE[0], "method": method} for method in ("uniform", "random")]
    )
    for policy in SQUARE[1:]:  # which would put all rows that stay into the first frames
        with pytest.raises(ValueError, match="words stand between the frames"):
            served(engine, text, film, policy)


@pytest.mark.parametrize("name", ["llava_onevision"])
def test_pooled_frames_of_onevision_have_no_row_of_the_projector(name, engine_of, checkpoints):
    engine, reference = engine_of(name), Reference(checkpoints(name))
    text, film = BARE.format("What?"), clip(112, 112)
    assert not differing(engine, reference, text, film, SQUARE)
    with pytest.raises(ValueError, match="pools the frames of videos"):
        served(engine, text, film, {"method": "vision_zip", "keep_ratio": 0.25, "positions": "repack"})

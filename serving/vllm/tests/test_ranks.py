"""Two ranks of tensor parallelism choose the same rows as one, also where scores come from split heads."""

from __future__ import annotations

import pytest

from .engines import same
from .test_engine import WHAT

RANKS = {"tensor_parallel_size": 2, "distributed_executor_backend": "mp"}
POLICIES = [
    None,
    {"method": "div_prune", "keep_ratio": 0.25},
    {"method": "vision_zip", "keep_ratio": 0.25, "tower_layer": -1},
    {"method": "pixel_redundancy"},
]


def test_two_ranks_give_the_answers_of_one(engine_of, images):
    def answers(**settings: object) -> list:
        engine = engine_of("tiny_qwen", **settings)
        return [engine.ask(WHAT, image, policy=policy) for policy in POLICIES for image in images]

    alone = answers()
    both = answers(**RANKS)
    assert all(same(a, b) for a, b in zip(both, alone, strict=True))


def test_whole_items_spread_over_the_ranks_are_chosen_from_behind_the_tower_alone(engine_of, images):
    after = POLICIES[:2]
    alone = [engine_of("tiny_qwen").ask(WHAT, image, policy=policy) for policy in after for image in images]
    engine = engine_of("tiny_qwen", mm_encoder_tp_mode="data", **RANKS)
    spread = [engine.ask(WHAT, image, policy=policy) for policy in after for image in images]
    assert all(same(a, b) for a, b in zip(spread, alone, strict=True))
    for policy in POLICIES[2:]:
        with pytest.raises(ValueError, match="acts inside the tower, which --mm-encoder-tp-mode data spreads"):
            engine.ask(WHAT, images[0], policy=policy)

"""Two ranks of tensor parallelism choose the same rows as one, also where scores come from split heads."""

from __future__ import annotations

from .engines import same
from .test_engine import WHAT

POLICIES = [
    None,
    {"method": "div_prune", "keep_ratio": 0.25},
    {"method": "vision_zip", "keep_ratio": 0.25, "tower_layer": -1},
    {"method": "pixel_redundancy"},
]


def test_two_ranks_give_the_answers_of_one(engine_of, pictures):
    def answers(**settings: object) -> list:
        engine = engine_of("tiny_qwen", **settings)
        return [engine.ask(WHAT, picture, policy=policy) for policy in POLICIES for picture in pictures]

    alone = answers()
    both = answers(tensor_parallel_size=2, distributed_executor_backend="mp")
    assert all(same(a, b) for a, b in zip(both, alone, strict=True))

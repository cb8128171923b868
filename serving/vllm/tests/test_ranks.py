"""Two ranks of tensor parallelism choose the same rows as one, also where scores come from split heads."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vlmopt.pruning import VisionAttention, VisionKeys
from vlmopt_vllm import signals
from vlmopt_vllm.policies import Served

from .engines import Answer, same
from .test_engine import CHUNKS, QUARTER, WHAT

RANKS = {"tensor_parallel_size": 2, "distributed_executor_backend": "mp", "beside": True}
POLICIES = [
    None,
    QUARTER,
    {"method": "vision_zip", "keep_ratio": 0.25, "tower_layer": -1},
    {"method": "pixel_redundancy"},
]


def answers(engine: Any, images: Any, policies: list[Any]) -> list[Answer]:
    return [engine.ask(WHAT, image, policy=policy) for policy in policies for image in images]


def test_two_ranks_give_the_answers_of_one(engine_of, images):
    alone = answers(engine_of("tiny_qwen", QUARTER, **CHUNKS), images, POLICIES)
    both = answers(engine_of("tiny_qwen", **RANKS), images, POLICIES)
    assert not [pair for pair in zip(both, alone, strict=True) if not same(*pair)]


def test_whole_items_spread_over_the_ranks_are_chosen_from_behind_the_tower_alone(engine_of, images):
    alone = answers(engine_of("tiny_qwen", QUARTER, **CHUNKS), images, POLICIES[:2])
    engine = engine_of("tiny_qwen", mm_encoder_tp_mode="data", **RANKS)
    spread = answers(engine, images, POLICIES[:2])
    assert not [pair for pair in zip(spread, alone, strict=True) if not same(*pair)]
    for policy in POLICIES[2:]:
        with pytest.raises(ValueError, match="acts inside the tower, which --mm-encoder-tp-mode data spreads"):
            engine.ask(WHAT, images[0], policy=policy)


def test_all_ranks_add_up_what_is_read_in_the_same_order():
    needs = [VisionKeys(-1), VisionAttention(-1)]  # a set's order differs from process to process
    policies = [Served("{}", None, SimpleNamespace(captures=order), 0) for order in (needs, needs[::-1])]
    assert policies[0].signals == policies[1].signals
    assert set(policies[0].signals) == set(needs)


@pytest.mark.parametrize("need", [VisionKeys(-1), VisionAttention(-1)])
def test_what_ranks_add_up_lies_in_one_piece_also_behind_the_cls_tokens_of_tiles(need, monkeypatch):
    query, key = (torch.randn(3, 2, 5, 4, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    read, summed = {}, []
    monkeypatch.setattr(signals, "tensor_model_parallel_all_reduce", lambda x: summed.append(x) or 2 * x)
    for ranks in (1, 2):
        monkeypatch.setattr(signals, "get_tensor_model_parallel_world_size", lambda: ranks)  # noqa: B023
        read[ranks] = signals.Heard(SimpleNamespace(cls=True)).received(need, query, key, 0.5)
    assert torch.equal(read[1], read[2])
    assert [x.is_contiguous() for x in summed] == [True]

"""What an engine does with pruned items: caches, chunks, batches, preemption, refusals. One engine for nearly all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from .engines import Answer, Reference, same

TEXT = "<|user|><|vision_start|><|image_pad|><|vision_end|>{}<|assistant|>"
WHAT, YELLOW = TEXT.format("What is in the picture?"), TEXT.format("Is there a yellow square?")
QUARTER = {"method": "div_prune", "keep_ratio": 0.25}
CHUNKS = {"max_num_batched_tokens": 64, "max_num_seqs": 8}  # images are cut, several times


@pytest.fixture
def engine(engine_of: Any) -> Any:
    engine = engine_of("tiny_qwen", QUARTER, **CHUNKS)
    engine.llm.reset_prefix_cache()
    return engine


def test_a_cached_prefix_gives_the_answer_of_a_cold_run(engine, images):
    cold = engine.ask(YELLOW, images[0])
    engine.llm.reset_prefix_cache()
    engine.ask(WHAT, images[0])
    warm = engine.ask(YELLOW, images[0])
    assert warm.cached > 0
    assert same(warm, cold)


def test_two_policies_in_turns_on_one_image_are_each_as_alone(engine, images):
    policies = [QUARTER, {"method": "uniform", "keep_ratio": 0.25}, {"keep_ratio": 0.5}, None]
    alone = []
    for policy in policies:
        engine.llm.reset_prefix_cache()
        engine.llm.reset_mm_cache()
        alone.append(engine.ask(WHAT, images[1], policy=policy))
    turns = [engine.ask(WHAT, images[1], policy=policy) for policy in policies * 2]
    assert all(same(turn, expected) for turn, expected in zip(turns, alone * 2, strict=True))
    assert len({answer.prompt for answer in alone}) == 3


def test_a_name_given_to_an_image_is_no_way_around_the_policy(engine, images):
    named = {"multi_modal_uuids": {"image": ["mine"]}}
    first = engine.ask(WHAT, images[0], policy=QUARTER, **named)
    second = engine.ask(WHAT, images[0], policy={"method": "uniform", "keep_ratio": 0.5}, **named)
    assert same(first, engine.ask(WHAT, images[0], policy=QUARTER))
    assert same(second, engine.ask(WHAT, images[0], policy={"method": "uniform", "keep_ratio": 0.5}))


def test_requests_that_run_together_are_as_alone(engine, images):
    policies = [
        None, QUARTER, {"method": "pixel_redundancy"}, {"method": "vision_zip", "keep_ratio": 0.2, "tower_layer": -1},
        {"method": "random", "keep_ratio": 0.4, "positions": "pospad"}, {"method": "resize", "keep_ratio": 0.5},
        {"method": "cen_prune", "keep_ratio": 0.3, "positions": "pospad"},
    ]  # fmt: skip
    prompts = [engine.prompt(WHAT, [p], policy=policy) for policy in policies for p in images[:2]]
    together = engine.run(prompts)
    engine.llm.reset_prefix_cache()
    engine.llm.reset_mm_cache()
    alone = [engine.run([prompt])[0] for prompt in prompts]
    assert all(same(a, b) for a, b in zip(together, alone, strict=True))


def test_text_alone_is_left_alone(engine, checkpoints):
    text = "<|user|>What is 2 + 2?<|assistant|>"
    served, expected = engine.ask(text), Reference(checkpoints("tiny_qwen")).ask(text)
    assert served.prompt == expected.prompt
    assert same(served, expected)


@pytest.mark.parametrize(("policy", "reason"), [
    ({"method": "fastv", "keep_ratio": 0.1, "layer": 2}, "lies inside the LLM"),
    ({"method": "uniform", "keep_ratio": 7}, "keep_ratio"),
    ({"method": "div_prune", "keep_ratio": 0.5, "positions": "repack"}, "undefined for M-RoPE"),
    ({"method": "vision_zip", "keep_ratio": 0.5, "tower_layer": 9}, "block 9 of the tower"),
    ("/etc/passwd", "unknown preset"),
    (7, "a policy must be"),
    ([[]], "a list may hold"),
])  # fmt: skip
def test_a_bad_policy_is_refused_by_its_reason_and_the_engine_goes_on(engine, images, policy, reason):
    with pytest.raises(ValueError, match=reason):
        engine.ask(WHAT, images[0], policy=policy)
    assert engine.ask(WHAT, images[0]).ids


@pytest.mark.parametrize("text", ["<|image_pad|>What?", "What? <|image_pad|>"])
def test_an_image_without_text_around_it_is_refused(engine, images, text):
    with pytest.raises(ValueError, match="before and behind every image"):
        engine.ask(text, images[0])


@pytest.mark.parametrize("stray", ["<|image_pad|>", "<|video_pad|>"])
def test_a_token_that_stands_for_images_is_refused_in_the_text(engine, images, stray):
    with pytest.raises(ValueError, match="holds a token that stands for images or videos"):
        engine.ask(TEXT.format(f"What is {stray}?"), images[0])


def test_positions_beyond_the_models_table_are_refused(engine, monkeypatch):
    from PIL import Image

    many = TEXT.format("").replace(
        "<|vision_end|>", "<|vision_end|>" + "<|vision_start|><|image_pad|><|vision_end|>" * 3
    )
    prompt = engine.prompt(many, [Image.new("RGB", (14 * 190, 14))] * 4, policy={"method": "uniform", "keep_tokens": 1})
    assert engine.run([prompt])[0].ids  # text goes on behind 190 cells each, of which one row stays
    config = engine.llm.llm_engine.vllm_config.model_config.hf_config.get_text_config()
    monkeypatch.setattr(config, "max_position_embeddings", 600)
    with pytest.raises(ValueError, match="positions would reach 2804, but the model has a table for 2400"):
        engine.run([prompt])


def test_a_request_that_was_preempted_goes_on_as_if_it_had_not_been(engine, engine_of, images, monkeypatch):
    from vllm.v1.core.sched.scheduler import Scheduler

    prompts = [engine.prompt(text, [image]) for image in images for text in (WHAT, YELLOW)]
    long = {"tokens": 40, "ignore_eos": True}
    alone = [engine.run([prompt], **long)[0] for prompt in prompts]
    room = {"num_gpu_blocks_override": 9, "max_model_len": 256, "enable_prefix_caching": False}
    small = engine_of("tiny_qwen", QUARTER, beside=True, **room)
    preempted, preempt = [], Scheduler._preempt_request
    monkeypatch.setattr(
        Scheduler, "_preempt_request", lambda *args, **more: preempted.append(1) or preempt(*args, **more)
    )
    assert all(same(a, b) for a, b in zip(small.run(prompts, **long), alone, strict=True))
    assert preempted


SCRIPT = """
import json, sys
from pathlib import Path
from tests.engines import Engine
from vlmopt.synthetic import scene
if __name__ == "__main__":
    engine = Engine(Path(sys.argv[1]), "absent")
    image = scene(777_000_001, (280, 196)).image
    answers = [engine.ask(text, *[image] * text.count("image_pad")) for text in json.loads(sys.argv[2])]
    print("ANSWERS", json.dumps([vars(answer) for answer in answers]))
"""


def test_without_the_key_the_plugin_changes_no_bit(checkpoints):
    def answers(plugins: str) -> list[Answer]:
        here = Path(__file__).parent.parent
        environment = {**os.environ, "VLLM_PLUGINS": plugins, "PYTHONPATH": str(here)}
        command = [
            sys.executable,
            "-c",
            SCRIPT,
            str(checkpoints("qwen3_vl")),
            json.dumps([WHAT, YELLOW, "<|user|>2 + 2?"]),
        ]
        done = subprocess.run(command, env=environment, cwd=here, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        line = next(line for line in done.stdout.splitlines() if line.startswith("ANSWERS"))
        return [Answer(**answer) for answer in json.loads(line.removeprefix("ANSWERS"))]

    assert answers("vlmopt") == answers("none")

"""Continuous batching on paper: queues whose answers are known, and devices that a rate needs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import vlmopt
from vlmopt.cli.main import main
from vlmopt.estimation import capacities, mix_of
from vlmopt.estimation.capacity import Request, Step, needed, serve, simulate
from vlmopt.estimation.serving import TOGETHER, steps

SEVEN = "llava-hf/llava-1.5-7b-hf"
ONE = Request(prompt=8192, new_tokens=1, encode=0.0, prefill=1.0, blocks=1)  # fills the budget of a step alone


NO_TIME = Step(host=0.0, weights=0.0, each=0.0)


def test_an_idle_device_takes_the_time_of_the_prompt() -> None:
    load = simulate([ONE], 0.001, NO_TIME, 10)
    assert (load.ttft_p50, load.ttft_p95) == pytest.approx((1.0, 1.0))


def test_busy_as_the_rate_says() -> None:
    assert simulate([ONE], 0.5, NO_TIME, 10, requests=6000).busy == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize(("rate", "within"), [(0.5, 0.63), (0.8, 2.0)])
def test_waiting_of_a_queue_with_fixed_service(rate: float, within: float) -> None:
    """M/D/1: the mean wait is rate / (2 (1 - rate)); the median lies below it, the 95th percentile above."""
    load = simulate([ONE], rate, NO_TIME, 10, requests=20000)
    assert load.ttft_p50 - 1 < within
    assert load.ttft_p95 - 1 > rate / (2 * (1 - rate))


def test_the_same_seed_gives_the_same_load() -> None:
    assert simulate([ONE], 0.5, NO_TIME, 10, seed=3) == simulate([ONE], 0.5, NO_TIME, 10, seed=3)
    assert simulate([ONE], 0.5, NO_TIME, 10, seed=3) != simulate([ONE], 0.5, NO_TIME, 10, seed=4)


def test_samples_share_a_step() -> None:
    """Decoding 100 tokens of 10 ms each: many at once where the cache holds them, else in turn."""
    kind = Request(prompt=1, new_tokens=101, encode=0.0, prefill=0.0, blocks=1)
    together = simulate([kind], 10, Step(host=0.0, weights=0.01, each=0.0), 1000)
    apart = simulate([kind], 10, Step(host=0.0, weights=0.01, each=0.0), 1)
    assert together.requests_per_s == pytest.approx(10, rel=0.1)
    assert apart.requests_per_s == pytest.approx(1, rel=0.02)
    assert apart.ttft_p95 > 100 * together.ttft_p95


def test_the_weights_are_read_once_in_a_step() -> None:
    """A long prompt hides them, a short one is hidden, and every sample that runs costs its own."""
    step = Step(host=0.002, weights=0.008, each=0.001)
    long, short = (Request(prompt=8, new_tokens=3, encode=0.1, prefill=seconds, blocks=1) for seconds in (1.0, 0.001))
    waits, elapsed, busy = serve([(0.0, long), (0.5, long), (0.5, short)], step, 100)
    first, second = 0.002 + 0.1 + 1.0, 0.002 + 0.2 + 1.001 + 0.001
    assert waits == pytest.approx([first, first - 0.5 + second, first - 0.5 + second])
    assert elapsed == busy == pytest.approx(first + second + (0.010 + 0.003) + (0.010 + 0.002))


def test_the_fewest_devices() -> None:
    """One serves what it can at this limit, and a thousand times the rate takes about a thousand times as many."""
    few, load = needed([ONE], 2.0, NO_TIME, 10, 3.0)
    assert load.ttft_p95 <= 3.0
    assert simulate([ONE], 2.0 / (few - 1), NO_TIME, 10).ttft_p95 > 3.0
    many = needed([ONE], 2000.0, NO_TIME, 10, 3.0)[0]
    assert 0.7 * 1000 * few <= many <= 1000 * few


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="on an idle device, more than the limit of 500 ms"):
        needed([ONE], 1.0, NO_TIME, 10, 0.5)
    with pytest.raises(ValueError, match="needs 1 cache blocks and 0 fit"):
        simulate([ONE], 1.0, NO_TIME, 0)
    for rate in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="the rate must be > 0"):
            capacities("tiny-qwen", rate)
    for text, message in (
        ("", "mix of requests is empty"),
        ("\n", "1 to 10000 lines"),
        ("[1]", "line 1: must be an object"),
        ('{"size": 1}', "image, images"),
    ):
        (tmp_path / "mix.jsonl").write_text(text)
        with pytest.raises(ValueError, match=message):
            mix_of(tmp_path / "mix.jsonl")


def test_every_entry_of_a_mix_has_its_part_in_a_step() -> None:
    """Long prompts have more keys to read for a token; which entry comes first does not matter."""
    asked = {"policies": (), "devices": ["a100"], "images": 0, "engine": "graph"}
    pairs = []
    for text in (10, 4000):
        one, many = (vlmopt.estimate(SEVEN, text=text, batch=n, **asked).predictions[0] for n in (1, TOGETHER))
        pairs.append((one, many))
    short, long = (steps([pair]) for pair in pairs)
    both = steps(pairs)
    assert short.each < both.each < long.each
    assert both.each == pytest.approx((short.each + long.each) / 2)
    assert both.weights == pytest.approx((short.weights + long.weights) / 2)
    assert steps(pairs[::-1]) == both


def test_an_entry_of_a_mix_that_is_wrong_is_named() -> None:
    with pytest.raises(ValueError, match=r"entry 2 of the mix, \{'images': -1\}: images must be a whole number >= 0"):
        capacities("tiny-qwen", 1.0, mix=[{}, {"images": -1}])


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A policy that saves prefill and cache needs no more devices than dense."""
    mix = tmp_path / "mix.jsonl"
    mix.write_text('{"image": "1280x800"}\n{"image": "640x480", "new_tokens": 32}\n')
    line: list[Any] = ["estimate", "--model", "llava-hf/llava-1.5-7b-hf", "--policy", "fastv:keep_ratio=0.1"]
    line += ["--device", "a100", "--rps", "200", "--mix", str(mix)]
    assert main([*line, "--json"]) == 0
    dense, cut = json.loads(capsys.readouterr().out)["capacities"]
    assert 1 < cut["devices"] < dense["devices"]
    assert dense["load"]["ttft_p95"] <= 2
    assert main(line) == 0
    assert "requests/s" in capsys.readouterr().out
    for words in (["--mix", str(mix)], ["--rps", "5", "--batch", "4"], ["--rps", "5", "--figure", "stages.svg"]):
        assert main(["estimate", *words]) == 2
        assert "--rps" in capsys.readouterr().err

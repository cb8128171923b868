"""Whatever a policy, a name or a file holds: `ValueError` or `TypeError` at once, in a message one can read."""

from __future__ import annotations

import json
import os
import time
from fractions import Fraction
from importlib.metadata import EntryPoint

import pytest

from vlmopt import catalogue, methods, scorers
from vlmopt.attention_fix import ImageBoost, VisualSink
from vlmopt.calibration.profile import Profile
from vlmopt.checkpoints import check_name
from vlmopt.cli.show_pattern import named
from vlmopt.core import parse, shown
from vlmopt.estimation import mix_of
from vlmopt.estimation.devices import devices
from vlmopt.head_patterns import HeadPatterns
from vlmopt.metrics import load_synonyms
from vlmopt.policy import Policy
from vlmopt.prefill import SparsePrefill
from vlmopt.pruning import Debias, FastV, PyramidDrop, Random, Uniform
from vlmopt.pruning.profile import DebiasProfile
from vlmopt.tuning import space

AT_ONCE = 0.25  # seconds, on a busy machine; each takes a few milliseconds
READABLE = 1500  # characters of a message
LONG = "a" * 300
HUGE = 10**400


def nested(depth: int, inner: object = None) -> object:
    for _ in range(depth):
        inner = [inner]
    return inner


def hosts(depth: int) -> dict[str, object]:
    host: dict[str, object] = {"method": "fastv", "keep_ratio": 0.5}
    for _ in range(depth):
        host = {"method": "debias", "host": host}
    return host


def loop() -> list[object]:
    inside: list[object] = []
    inside += [inside, inside]
    return inside


HOSTILE = {
    "long preset": lambda: Policy.load(LONG),
    "very long preset": lambda: Policy.load("a" * 1_000_000),
    "long path": lambda: Policy.load("a/" * 3000),
    "null byte": lambda: Policy.load("a\0b/"),
    "undecodable name": lambda: Policy.load("\udcff/"),
    "long directory": lambda: Policy.from_pretrained(LONG),
    "long scorer": lambda: scorers.load(LONG),
    "long scorer path": lambda: scorers.load("a/" * 100),
    "long model": lambda: check_name(LONG),
    "long Hub id": lambda: check_name(f"{LONG}/b"),
    "null byte in a model": lambda: check_name("a\0/b"),
    "long method": lambda: methods.build({"method": "a" * 100_000}),
    "long setting": lambda: methods.build({"method": "uniform", "a" * 100_000: 1}),
    "long key": lambda: Policy.load({"a" * 100_000: 1}),
    "huge whole number": lambda: Uniform(keep_tokens=HUGE),
    "huge layer": lambda: Uniform(keep_ratio=0.5, layer=HUGE),
    "huge ratio": lambda: Uniform(keep_ratio=HUGE),
    "huge fraction": lambda: Uniform(keep_ratio=Fraction(HUGE)),
    "huge dimension": lambda: VisualSink(dims=(HUGE,), tau=1.0),
    "huge seed": lambda: Policy(seed=HUGE**20),
    "huge format": lambda: Policy.load({"format": HUGE**20}),
    "huge layer text": lambda: ImageBoost(layers="9" * 5000),
    "huge number in JSON": lambda: Policy.load('{"seed": ' + "9" * 5000 + "}"),
    "400 hosts": lambda: Policy.load({"prune": [hosts(400)]}),
    "400 hosts in JSON": lambda: Policy.load(json.dumps(hosts(400))),
    "lists in prune": lambda: Policy.load({"prune": nested(5000)}),
    "lists in a setting": lambda: PyramidDrop(keep_ratio=0.5, layers=nested(5000)),
    "lists in a dict form": lambda: methods.build({"method": "pyramid_drop", "layers": nested(5000)}),
    "lists in prefill": lambda: SparsePrefill.from_dict({"heads": nested(5000)}),
    "lists in head patterns": lambda: HeadPatterns.from_dict({"schema": nested(5000)}),
    "lists in a trend": lambda: DebiasProfile.from_dict({"format": nested(5000)}),
    "lists in JSON": lambda: Policy.load("[" * 100_000 + "]" * 100_000),
    "brackets without end": lambda: Policy.load('{"prune": ' + "[" * 100_000),
    "a list that holds itself": lambda: Policy.load({"prune": [{"method": "pyramid_drop", "layers": loop()}]}),
    "a method as host of itself": lambda: Debias(Debias(FastV(keep_ratio=0.5))),
    "no dict": lambda: Policy.from_dict(5),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_refused_at_once(case):
    methods.installed()  # what is read once
    spent = []
    for _ in range(3):  # a collection of garbage may fall into one
        start = time.process_time()
        with pytest.raises((ValueError, TypeError)) as caught:
            HOSTILE[case]()
        spent.append(time.process_time() - start)
    assert min(spent) < AT_ONCE
    assert type(caught.value) in (ValueError, TypeError)
    if case not in ("long scorer path", "long directory"):  # these quote the Hub client
        assert len(str(caught.value)) < READABLE


def test_files_may_begin_with_a_byte_order_mark(tmp_path):
    policy = Policy(prune=[Random(keep_ratio=0.5)], seed=3)
    (tmp_path / "policy.json").write_text(policy.to_json(), encoding="utf-8-sig")
    assert Policy.load(tmp_path / "policy.json") == policy


def test_a_policy_written_out_as_json():
    policy = Policy(prune=[Random(keep_ratio=0.5)], attention=[ImageBoost()], seed=3)
    for text in (policy.to_json(), json.dumps(policy.to_dict()), " " * 5000 + policy.to_json()):
        assert Policy.load(text) == policy
        assert Policy.load("\ufeff" + text) == policy
    assert Policy.load('[{"method": "random", "keep_ratio": 0.5}]').prune == policy.prune
    assert Policy.load('{"method": "random", "keep_ratio": 0.5}').prune == policy.prune


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ('{"seed": 1, "seed": 2}', "'seed' is given twice"),
        ('{"prune": [{"method": "random", "keep_ratio": 0.5, "keep_ratio": 0.1}]}', "'keep_ratio' is given twice"),
        ('{"seed": NaN}', "NaN is not a number"),
        ('{"prune": [', "JSON policy"),
        ('{"prune": {}}', "prune must be a list"),
    ],
)
def test_json_that_is_refused(text, match, tmp_path):
    with pytest.raises((ValueError, TypeError), match=match):
        Policy.load(text)
    file = tmp_path / "policy.json"
    file.write_text(text)
    with pytest.raises((ValueError, TypeError), match=match):
        Policy.load(str(file))


def test_a_key_given_twice_in_any_file(tmp_path):
    file = tmp_path / "twice.json"
    file.write_text('{"format": 1, "format": 1}')
    for load in (Profile.load, HeadPatterns.load, DebiasProfile.load):
        with pytest.raises(ValueError, match="'format' is given twice"):
            load(file)


LOADERS = [
    Policy.load, Profile.load, HeadPatterns.load, DebiasProfile.load, load_synonyms, devices, mix_of, space.read,
]  # fmt: skip


@pytest.mark.parametrize("load", LOADERS)
def test_a_pipe_is_no_file_of_ours(load, tmp_path):
    os.mkfifo(tmp_path / "pipe.json")  # whoever opens it waits for ever
    with pytest.raises(ValueError, match="not a regular"):
        load(str(tmp_path / "pipe.json"))


@pytest.mark.parametrize(
    "text",
    ['{"method": "min_p", "tau": 0.5, "tau": 0.6}', '{"a":' * 100_000 + "1" + "}" * 100_000],
    ids=("twice", "deep"),
)
def test_a_pattern_on_the_command_line_is_strict_json(text):
    with pytest.raises(ValueError, match=r"given twice|nested more than"):
        named(text)


def test_entry_points_are_read_once(monkeypatch):
    reads: list[str] = []

    def read(group: str) -> list[EntryPoint]:
        reads.append(group)
        return []

    monkeypatch.setattr(methods, "entry_points", read)
    methods.installed.cache_clear()
    try:
        for _ in range(3):
            Policy.load({"prune": [{"method": "random", "keep_ratio": 0.5}]})
            methods.methods()
        assert reads == [catalogue.PLUGINS]
    finally:
        methods.installed.cache_clear()


def test_json_keeps_what_it_may_hold():
    deep = nested(30, 0)
    assert parse(json.dumps({"a": deep, "b": [1.5, None, True, "x"]})) == {"a": deep, "b": [1.5, None, True, "x"]}


def test_values_in_messages():
    assert shown("short") == "'short'"
    assert shown(HUGE) == "<a whole number of 1329 bits>"
    assert len(shown("x" * 10_000)) == 200
    assert len(shown(loop())) < 500

"""Which policies a sweep has, and what it refuses before torch is loaded."""

from __future__ import annotations

import subprocess
import sys

import pytest

from vlmopt.evaluation.request import named_policies
from vlmopt.evaluation.sweep import CONTROLS, grid
from vlmopt.policy import Policy
from vlmopt.pruning import DivPrune, PixelRedundancy


def test_every_line_at_every_ratio_and_the_controls() -> None:
    found = grid(["fastv:layer=4", "pixel_redundancy+div_prune"], [0.5, 0.1])
    assert [point.line for point in found.values()] == [
        name for name in ("fastv:layer=4", "pixel_redundancy+div_prune", *CONTROLS) for _ in range(2)
    ]
    assert list(found)[:2] == ["fastv:layer=4@0.1", "fastv:layer=4@0.5"]
    assert found["fastv:layer=4@0.1"].methods == [{"method": "fastv", "layer": 4, "keep_ratio": 0.1}]
    policies = named_policies(["balanced"], 7, found)
    assert list(policies)[:3] == ["dense", "balanced", "fastv:layer=4@0.1"]
    both = Policy(prune=(PixelRedundancy(), DivPrune(keep_ratio=0.5)), seed=7)
    assert policies["pixel_redundancy+div_prune@0.5"] == both
    assert policies["dense"] == Policy()


def test_a_control_that_is_asked_for_comes_once() -> None:
    assert [point.line for point in grid(["uniform", "dart"], [0.2]).values()] == ["uniform", "dart", "random"]
    assert grid([], []) == {}


def test_the_selector_without_a_budget_takes_the_ratio() -> None:
    (point, *_) = grid(["pixel_redundancy+visual_sink+div_prune:keep_ratio=0.3"], [0.2]).values()
    assert [method.get("keep_ratio") for method in point.methods] == [0.2, None, 0.3]


@pytest.mark.parametrize(
    ("lines", "ratios", "words"),
    [
        (["fastv"], [], "together"),
        ([], [0.1], "together"),
        (["fastv"], [0.1, 1.0], "above 0 and below 1, got 1;"),
        (["fastv"], [float("nan")], "got nan"),
        (["fastv", "fastv"], [0.1], "'fastv' twice"),
        (["balanced"], [0.1], "a preset has its budget"),
        (["fastv:keep_ratio=0.3"], [0.1], "no method in it takes a ratio"),
        (["snap_kv"], [0.1], "no method in it takes a ratio"),
        (["visual_sink"], [0.1], "no method in it takes a ratio"),
        (["fastvv"], [0.1], "did you mean"),
        (["fastv:ratio=1"], [0.1], "unknown setting .ratio."),
    ],
)
def test_what_a_sweep_refuses(lines: list[str], ratios: list[float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        grid(lines, ratios)


def test_the_command_line_refuses_without_torch() -> None:
    code = (
        "import sys; from vlmopt.cli.main import main; "
        "code = main(['eval', '--data', 'worlds', '--out', 'x', '--sweep', 'fastvv', '--ratios', '0.1']); "
        "assert 'torch' not in sys.modules; sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "did you mean 'fastv'" in done.stderr

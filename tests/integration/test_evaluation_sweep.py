"""A sweep on the bundled checkpoint: one grid on the same samples, which goes on and grows."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.fixtures.evaluation import manifest_file, settings
from vlmopt.evaluation import evaluate as module
from vlmopt.evaluation.evaluate import evaluate
from vlmopt.evaluation.records import read
from vlmopt.evaluation.report import write_report
from vlmopt.evaluation.summary import summarize
from vlmopt.loading import load


def test_a_sweep_grows_by_ratios_and_asks_nothing_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, asked = load("tiny-qwen", device="cpu"), []
    monkeypatch.setattr(module, "load", lambda name, **_: loaded)
    generate = module.Runner._answers
    monkeypatch.setattr(
        module.Runner, "_answers", lambda self, name, *rest: (asked.append(name), generate(self, name, *rest))[1]
    )
    data, run = manifest_file(tmp_path, 1), tmp_path / "run"
    common = {"source": {"limit": 4}, "batch_size": 4, "sweep": ["div_prune"]}
    evaluate(settings(data, run, **common, ratios=[0.5]))
    assert set(asked) == {"dense", "div_prune@0.5", "random@0.5", "uniform@0.5"}
    asked.clear()
    evaluate(settings(data, run, **common, ratios=[0.25, 0.5]))
    assert set(asked) == {"div_prune@0.25", "random@0.25", "uniform@0.25"}
    rows = read(run)
    ids = {policy: {row.id for row in rows if row.policy == policy} for policy in (row.policy for row in rows)}
    assert len(ids) == 7
    assert len({frozenset(names) for names in ids.values()}) == 1
    summary = summarize(run)
    assert summary["lines"]["div_prune@0.25"] == ["div_prune", 0.25]
    tokens = {name: one["tokens"] for name, one in summary["policies"].items()}
    for ratio in (0.25, 0.5):
        share = tokens[f"div_prune@{ratio}"]["layer_average"] / tokens["dense"]["visual"]
        assert share == pytest.approx(ratio, abs=0.01)
    write_report(run)
    assert (run / "plots" / "accuracy-versus-tokens.pdf").exists()
    with pytest.raises(ValueError, match=r"holds answers of the policy 'div_prune@0\.25': give it again"):
        evaluate(settings(data, run, **common, ratios=[0.5]))

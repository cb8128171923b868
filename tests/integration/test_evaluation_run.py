"""Whole runs on the bundled checkpoint: the same samples in the same batches, figures, maps."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.fixtures.evaluation import (
    answers,
    coco_files,
    lines,
    manifest_file,
    plain_image,
    pope_files,
    screenspot_file,
    settings,
)
from tests.support.media_files import write_video
from vlmopt.checkpoints import load_checkpoint
from vlmopt.cli.eval import table
from vlmopt.evaluation import evaluate as module
from vlmopt.evaluation.evaluate import evaluate
from vlmopt.evaluation.generation import ended_after
from vlmopt.evaluation.maps import load_maps
from vlmopt.evaluation.records import read
from vlmopt.evaluation.summary import summarize
from vlmopt.loading import load


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return manifest_file(tmp_path_factory.mktemp("data"), 2)


@pytest.fixture(scope="module", autouse=True)
def _load_once() -> Iterator[None]:
    loaded = load("tiny-qwen", device="cpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "load", lambda name, **_: loaded)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """A run that nothing interrupted."""
    run = tmp_path_factory.mktemp("whole") / "run"
    evaluate(settings(data, run, "attention-25", "uniform-50", batch_size=5))
    summarize(run)
    return run


def test_every_policy_answers_the_same_samples_in_the_same_batches(whole: Path, data: Path) -> None:
    rows = [json.loads(line) for line in (whole / "samples.jsonl").read_text().splitlines()]
    count = len(data.read_text().splitlines())
    by_policy = {name: [r for r in rows if r["policy"] == name] for name in ("dense", "attention-25", "uniform-50")}
    assert [len(own) for own in by_policy.values()] == [count] * 3
    for own in by_policy.values():
        assert [r["id"] for r in own] == [r["id"] for r in by_policy["dense"]]
        assert [(r["call"], r["batch"]) for r in own] == [(r["call"], r["batch"]) for r in by_policy["dense"]]
    assert {r["batch"] for r in rows} == {2, 5}
    cut = by_policy["attention-25"][0]
    assert cut["tokens"]["kept"] * 4 == cut["tokens"]["visual"] < cut["tokens"]["layer_average"] * 4
    assert cut["ms"]["scoring"] > 0 < cut["ms"]["ttft"] < cut["ms"]["total"]


def test_ragged_batches_answer_as_single_prompts_do(whole: Path, data: Path, tmp_path: Path) -> None:
    evaluate(settings(data, tmp_path / "one", "attention-25", batch_size=1))
    for policy in ("dense", "attention-25"):
        assert answers(tmp_path / "one", policy) == answers(whole, policy)


def test_the_summary(whole: Path) -> None:
    summary = json.loads((whole / "summary.json").read_text())
    dense, cut = summary["policies"]["dense"], summary["policies"]["attention-25"]
    assert (summary["complete"], summary["primary"], summary["samples"]) == (True, "accuracy", 12)
    assert dense["metrics"]["accuracy"]["n"] == 6
    assert dense["metrics"]["anls"]["n"] == dense["metrics"]["chair_i"]["n"] == 2
    assert dense["versus_dense"] == {}
    assert set(cut["versus_dense"]["accuracy"]) == {"difference", "low", "high", "p", "p_holm", "n"}
    assert cut["agreement_with_dense"]["value"] < 1 == dense["agreement_with_dense"]["value"]
    assert dense["latency"]["calls"] == 3
    assert dense["latency"]["ttft_ms"]["p20"] <= dense["latency"]["ttft_ms"]["median"]
    assert dense["latency"]["peak_memory_bytes"] > 2**24
    assert set(dense["by_category"]) == {"first", "later"}
    assert summary["decoding"]["do_sample"] is False
    environment = json.loads((whole / "environment.json").read_text())
    assert environment["model"]["attention"] == "sdpa"
    assert environment["packages"]["torch"] == torch.__version__
    assert len(environment["starts"]) == 1


def test_the_table_on_the_screen(whole: Path) -> None:
    summary = json.loads((whole / "summary.json").read_text())
    head, *rows = table(summary).strip().splitlines()
    assert head.split()[:4] == ["policy", "n", "errors", "kept"]
    assert "accuracy" in head
    assert "KV KiB" in head
    dense, cut, _ = (one["latency"]["kv_bytes"]["median"] / 2**10 for one in summary["policies"].values())
    assert cut < dense
    assert f" {dense:.1f} " in rows[0]
    assert [row.split()[0] for row in rows] == ["dense", "attention-25", "uniform-50"]
    assert len({len(row) for row in (head, *rows)}) == 1
    assert "not complete" in table(summary | {"complete": False})


def test_maps_are_kept_of_answers_that_changed(whole: Path, data: Path, tmp_path: Path) -> None:
    rows, dense = read(whole), answers(whole)
    changed = {r.key for r in rows if r.prediction != dense[r.id]}
    assert {r.key for r in rows if r.map} == changed != set()
    row = next(r for r in rows if r.map)
    (kept,) = load_maps(whole / str(row.map))
    assert int(kept.kept.sum()) == row.tokens["kept"]
    assert (whole / str(row.seen)).stat().st_size > 0
    evaluate(settings(data, tmp_path / "few", "attention-25", maps=1, batch_size=4))
    assert sum(r.map is not None for r in read(tmp_path / "few")) == 1


def test_clicks_in_boxes_by_platform_and_type(tmp_path: Path) -> None:
    file = screenspot_file(tmp_path)
    source = {"images": str(tmp_path / "images"), "boxes": "xywh"}
    evaluate(settings(file, tmp_path / "run", source=source, prompt="Click {question}."))
    dense = summarize(tmp_path / "run")["policies"]["dense"]
    assert dense["metrics"]["accuracy"]["value"] == 1
    assert set(dense["by_category"]) == {"mobile/text", "mobile/icon", "platform mobile", "type text", "type icon"}
    assert read(tmp_path / "run")[0].question.startswith("Click ")


@pytest.mark.parametrize(
    ("write", "images", "figure"), [(pope_files, "images", "f1"), (coco_files, "val2014", "chair_i")]
)
def test_public_formats_run(tmp_path: Path, write: Any, images: str, figure: str) -> None:
    """POPE in three splits, and CHAIR with the truth of COCO's files (a toy names no dogs: recall 0, nothing false)."""
    first, *others = write(tmp_path, 2)
    asked = settings(first, tmp_path / "run", source={"images": str(tmp_path / images), "limit": 8})
    source = replace(asked.source, data=[str(first), *map(str, others)])
    evaluate(replace(asked, source=source, batch_size=4))
    dense = summarize(tmp_path / "run")["policies"]["dense"]
    assert dense["errors"] == 0
    assert figure in dense["metrics"]
    if write is pope_files:
        assert len(dense["by_category"]) == 3
        assert set(dense["mean_of_splits"]) == {"accuracy", "precision", "recall", "f1", "yes_ratio"}
    else:
        assert dense["metrics"]["chair_recall"]["value"] == dense["metrics"]["chair_i"]["value"] == 0
        assert read(tmp_path / "run")[0].question == "Please describe this image in detail."


def test_a_video_is_asked_alone(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", frames=8)
    plain_image(tmp_path / "a.png")
    rows = [{"id": "1", "video": "a.mp4", "question": "What?"}, {"id": "2", "image": "a.png", "question": "What?"}]
    write_video(tmp_path / "b.mp4", frames=8)
    rows.append({"id": "3", "video": ["a.mp4", "b.mp4"], "question": "What changed?"})
    evaluate(settings(lines(tmp_path / "m.jsonl", rows), tmp_path / "run", "uniform-50"))
    first, _, second, *_ = read(tmp_path / "run")
    assert (first.error, first.batch, first.extra["video"]) == (None, 1, str(tmp_path / "a.mp4"))
    assert second.error is None
    both = read(tmp_path / "run")[4]
    assert both.error is None
    assert both.extra["videos"] == [str(tmp_path / "a.mp4"), str(tmp_path / "b.mp4")]
    assert both.tokens["visual"] == 2 * first.tokens["visual"]


def test_a_model_spread_over_places_gives_the_same_answers(
    whole: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tower in memory, the decoder on disk: accelerate's hooks move weights and inputs, ours cut in between."""
    asked, places = [], {"model.visual": "cpu", "model.language_model": "disk", "lm_head": "disk"}

    def spread(name: str, *, device_map: str, **options: Any) -> Any:
        asked.append(device_map)
        return load_checkpoint(name, device_map=places, offload_folder=tmp_path / "weights", **options)

    monkeypatch.setattr(module, "load_checkpoint", spread)
    evaluate(settings(data, tmp_path / "run", "attention-25", device_map="auto", source={"limit": 3}))
    assert asked == ["auto"]
    for policy in ("dense", "attention-25"):
        found = answers(tmp_path / "run", policy)
        assert found == {name: text for name, text in answers(whole, policy).items() if name in found}
    assert all(record.memory_bytes is None for record in read(tmp_path / "run"))
    assert json.loads((tmp_path / "run" / "environment.json").read_text())["device_map"] == places


def test_tokens_up_to_the_end_mark() -> None:
    new = torch.tensor([[5, 1, 0, 0], [5, 6, 7, 8], [1, 0, 0, 0]])
    assert ended_after(new, [1, 2]) == [2, None, 1]
    assert ended_after(new, []) == [None, None, None]

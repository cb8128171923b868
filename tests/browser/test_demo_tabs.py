"""Every tab of the demo computes at the press of a button, and says what it shows and what that is worth."""

from __future__ import annotations

import argparse
import json
import math
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import vlmopt
from tests.support.tab_page import TABS, charts, fine, images, loaded, one_model, page, pressed, run_of, said
from vlmopt.analysis.click import REACH
from vlmopt.apps.page import running
from vlmopt.apps.page.tabs import layers, ledger, pareto
from vlmopt.attention_fix import VisionHeads, VisualSink
from vlmopt.cli.main import build_parser, main
from vlmopt.kernels.patterns import AShape
from vlmopt.kv import KeyDiff
from vlmopt.prefill import SparsePrefill
from vlmopt.pruning import FastV, PixelRedundancy, Random, Uniform

__all__ = ["one_model"]
pytestmark = pytest.mark.usefixtures("one_model")
EVIL = "<img src=x onerror=alert(1)> **bold** $x$"


def test_words_of_models_are_never_markup():
    run = run_of([FastV(keep_ratio=0.25, layer=2)], answer=EVIL)
    test = fine(page(run, *TABS))
    assert EVIL not in said(test)
    assert not any(element.allow_html for element in test.markdown)


def test_progressive_runs_show_every_stage():
    run = run_of("progressive")
    test = fine(page(run, "layers"))
    assert images(test) == 2
    rows = layers.counts(run.optimized.report.samples[0], 6)
    kept = {row["layer"]: row["amount"] for row in rows if row["part"] == "kept"}
    assert kept == {0: 64, 1: 64, 2: 32, 3: 32, 4: 16, 5: 16}
    gone = {row["layer"]: row["amount"] for row in rows if row["part"] == "dropped"}
    assert gone == {2: 32, 3: 32, 4: 48, 5: 48}


def test_markers_count_in_the_layers():
    run = run_of([FastV(keep_ratio=0.25, layer=2, positions="pospad")])
    sample = run.optimized.report.samples[0]
    rows = [row for row in layers.counts(sample, 6) if row["part"] == "markers"]
    assert {row["layer"] for row in rows} == {2, 3, 4, 5}
    assert {row["amount"] for row in rows} == {sample["markers"]}
    total = sum(row["amount"] for row in layers.counts(sample, 6))
    assert total == 6 * sample["visual_tokens"]


def test_the_cache_of_every_layer_is_shown():
    cut = FastV(keep_ratio=0.25, layer=2)
    run = run_of(vlmopt.Policy(prune=[cut], kv=KeyDiff(keep_ratio=0.5)))
    report = run.optimized.report
    test = fine(page(run, "layers"))
    assert charts(test) == 2
    sizes = [f"**{size / 2**10:.0f} KiB**" for size in (report.kv_bytes_prompt, report.kv_cache_bytes)]
    assert "the cache went from {} to {}".format(*sizes) in said(test)
    rows = layers.keys(report)
    kept = [row["amount"] for row in rows if row["part"] == "kept"]
    gone = {row["layer"]: row["amount"] for row in rows if row["part"] == "evicted"}
    assert gone == {0: 29, 1: 29, 2: 6, 3: 6, 4: 6, 5: 6}  # half of 59 and of 12 that compete
    assert kept == [71 - 29] * 2 + [23 - 6] * 4


def test_a_cache_behind_cuts_alone_is_shown_too():
    run = run_of("progressive")
    report = run.optimized.report
    test = fine(page(run, "layers"))
    assert f"the cache held **{report.kv_cache_bytes / 2**10:.0f} KiB**" in said(test)
    assert [row["amount"] for row in layers.keys(report)] == report.key_lengths
    assert len(set(report.key_lengths)) == 3


def test_stage_bars_add_up_to_the_whole():
    report = run_of("attention-25").optimized.report
    parts = ledger.parts("optimized", report)
    assert sum(row["amount"] for row in parts) == pytest.approx(report.ms["total"], abs=0.1)
    assert {row["part"] for row in parts} >= {"vision", "scoring", "prefill", "decode"}


def test_the_ledger_tells_what_was_skipped():
    test = fine(page(run_of([Uniform(keep_ratio=1.0)]), "ledger"))
    assert "Skipped, and why" in said(test)
    assert any("changes nothing" in str(frame.value) for frame in test.dataframe)
    assert "applied" not in test.code[0].value


def test_savings_are_predicted_and_the_commands_written():
    test = fine(page(run_of([FastV(keep_ratio=0.25, layer=2)]), "savings"))
    assert "What would it save" in said(test)
    assert "not measured" in said(test)
    (table,) = test.dataframe
    first = table.value.set_index("figure").loc["first token"]
    assert float(first["times as fast"]) > 1
    assert not test.code
    test = pressed(test, "Write the commands")
    predict, find = (vlmopt_words(line) for line in test.code[0].value.splitlines())
    assert predict.policy == ["policy.json"]
    assert (find.model, find.budget, find.objective) == (predict.model, 1.0, "ttft")
    test.text_input[0].set_value("wide").run()
    assert "No prediction" in said(fine(test))


@pytest.mark.parametrize("method", [Uniform(keep_ratio=0.25), PixelRedundancy()])
def test_the_command_predicts_what_the_page_shows(
    method: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of([method])
    test = pressed(page(run, "savings"), "Write the commands")
    monkeypatch.chdir(tmp_path)
    Path("policy.json").write_text(json.dumps(run.request.policy.to_dict()))
    capsys.readouterr()
    assert main([*shlex.split(test.code[0].value.splitlines()[0])[1:], "--json"]) == 0
    _, own = json.loads(capsys.readouterr().out)["predictions"]
    shown = test.dataframe[0].value.set_index("figure")["this policy"]
    assert shown["whole answer"] == f"{own['total_ms'] / 1e3:.2f} s"
    assert shown["first token"] == f"{own['ttft_ms']:.0f} ms"


def vlmopt_words(line: str) -> argparse.Namespace:
    """What the command line makes of a command."""
    words = shlex.split(line)[1:]
    return build_parser(words[:1]).parse_args(words)


def test_heads_are_measured_at_the_press_of_a_button():
    test = page(run_of("attention-25"), "heads")
    assert charts(test) == 0
    assert "Press the button" in said(test)
    test = pressed(test, "Measure the heads")
    assert charts(test) == 1
    for kind in test.selectbox[0].options:
        fine(test.selectbox[0].set_value(kind).run())
        assert charts(test) == 1
    assert "One prompt says little" in said(test)


def test_gains_of_a_run_are_shown():
    test = fine(page(run_of([VisionHeads(layers="0:")]), "heads"))
    assert test.selectbox[0].options == ["gain in this run"]
    assert charts(test) == 1


def test_sinks_before_and_after_redistribution():
    sink = VisualSink(dims=(3, 17), tau=2.0, min_visual_mass=0.05, min_nonsink_ratio=0.3, min_nonsink_tokens=1)
    test = pressed(page(run_of([replace(sink, layers="0:")]), "sinks"), "Look for sinks")
    text = said(test)
    assert "before redistribution" in text
    assert "Sinks by token" in text
    assert images(test) == 1
    assert charts(test) == 1


def test_a_model_without_sinks_is_told_to_have_none():
    test = pressed(page(run_of("attention-25"), "sinks"), "Look for sinks")
    text = said(test)
    assert "No token of this prompt is a sink" in text
    assert "add **visual_sink**" in text
    assert charts(test) == 1


def test_a_second_look_shows_the_part_and_both_answers():
    test = pressed(page(run_of("uniform-25"), "look"), "Look twice")
    assert images(test) == 1
    assert "First answer" in said(test)
    assert "visual ones enter the model" in said(test)
    test = fine(page(replace_images(run_of("uniform-25"), 2), "look"))
    assert "taken at one image" in said(test)
    assert not test.button


def replace_images(run: Any, count: int) -> Any:
    return replace(run, request=replace(run.request, images=run.request.images * count))


def test_a_pattern_is_drawn_head_by_head():
    prefill = SparsePrefill(pattern=AShape(sink=16, local=16), min_len=1)
    test = page(run_of(vlmopt.Policy(prefill=prefill)), "sparse")
    test = pressed(test, "Draw the heads of layer 3")
    (table,) = test.dataframe
    assert list(table.value["head"]) == [0, 1, 2, 3]
    assert (table.value["blocks"] < 1).all()
    assert images(test) == 1
    test = fine(test.selectbox[0].set_value("pbs_attn").run())
    test = pressed(test, "Draw the heads of layer 3")
    assert images(test) == 2  # in the order of computing as well
    assert "long-video" not in said(test)


def test_a_sweep_compares_with_the_controls_and_says_what_it_is_worth():
    test = page(run_of([FastV(keep_ratio=0.25, layer=2)], answer=EVIL), "pareto")
    assert "One image proves nothing" in said(test)
    test = fine(test.multiselect[0].set_value([0.25, 0.5]).run())
    test = pressed(test, "Run 7 variants")
    assert charts(test) == 2
    assert "Medians of 3 runs of each, in turn" in said(test)
    assert [button.proto.label for button in test.get("download_button")] == ["CSV", "SVG"]
    (table,) = test.dataframe
    assert list(table.value["method"]) == ["dense", *["fastv, layer 2", "random", "uniform"] * 2]
    assert list(table.value["kept"]) == pytest.approx([1, *[0.25] * 3, *[0.5] * 3])
    again = next(button for button in test.button if button.label == "Run again")
    test = fine(again.click().run())
    assert any(button.label == "Run 7 variants, 3 times each" for button in test.button)


def test_a_sweep_of_clicks_is_marked_by_pixels():
    """Whatever the tokens have in common: what counts is how far a click is from the dense one."""
    run = run_of([FastV(keep_ratio=0.25, layer=2)])
    request = replace(run.request, task="click", max_new_tokens=32)
    contest = {"random": Random(keep_ratio=0.1)}
    swept = pareto.measure(loaded().model, loaded().processor, request, contest, (0.1, 0.5), lambda *_: None)
    size = request.images[0].size
    assert swept.off[0] == 0
    assert swept.mark == "pixels between the clicks"
    assert {point.repeats for point in swept.points} == {3}
    for point, off in zip(swept.points, swept.off, strict=True):
        reach = REACH * math.hypot(*size)
        assert point.agreement == pytest.approx(0 if off is None else max(0, 1 - off / reach))
    unclicked = replace(request, task="answer")
    swept = pareto.measure(loaded().model, loaded().processor, unclicked, contest, (0.5,), lambda *_: None)
    assert swept.off == [None] * 2
    assert swept.mark in ("ANLS", "exact match")


def test_a_stopped_sweep_keeps_what_it_has():
    run, steps = run_of([FastV(keep_ratio=0.25, layer=2)]), []

    def progress(done: float, text: str) -> None:
        steps.append(text)
        if text.startswith("Run 3 of"):
            raise running.Stopped

    contest = {"fastv": FastV(keep_ratio=0.25, layer=2), "uniform": Uniform(keep_ratio=0.5)}
    swept = pareto.measure(loaded().model, loaded().processor, run.request, contest, (0.25, 0.5), progress)
    assert [point.name for point in swept.points] == ["dense", "fastv"]
    assert (swept.wanted, len(swept.answers)) == (5, 2)
    assert vlmopt.restore(loaded().model) is loaded().model


def test_the_cut_is_drawn_where_scores_alone_decide():
    def marks(policy: Any) -> str:
        return said(fine(page(run_of(policy), "scores")))

    assert "The dashed line is the cut" in marks("attention-25")
    assert "does not rank" in marks("uniform-25")

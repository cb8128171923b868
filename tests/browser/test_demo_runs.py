"""What a press on Run does: answers, choices at other ratios, files to take home; one model, many sessions."""

from __future__ import annotations

import io
import shlex
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from streamlit.testing.v1 import AppTest

import vlmopt
from tests.support.demo import quick  # noqa: F401 (a fixture)
from vlmopt import methods
from vlmopt.analysis.ladder import at_ratio, ladder
from vlmopt.analysis.starting import depth_of, holds, shallower, starting
from vlmopt.apps.page import inputs, running, takeaway
from vlmopt.apps.page.jobs import Job
from vlmopt.apps.page.models import Held
from vlmopt.apps.page.state import Request, Run, Source
from vlmopt.cli.main import main
from vlmopt.loading import Loaded, load

QUESTION = """Click "Save"; don't."""
DEPTH = 6
# Need what was measured or trained on the model before.
MEASURED = {"adaptive_generated_text", "focus_ui", "head_gain", "visual_sink"}
TOLD = {"local_contrast": "needs mask=", "yes_bias": "ids must name the tokens of yes"}  # what a form cannot know


@pytest.fixture(scope="module")
def loaded() -> Iterator[Loaded]:
    """Without warm-up runs: no time is looked at here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running, "WARMUP", 0)
        yield load("tiny-qwen")


def request(policy: Any = "attention-25", question: str = "Click Save.", **changes: Any) -> Request:
    given = inputs.sample(0)
    facts = {"images": given.images, "task": "click", "max_new_tokens": 8, **changes}
    return Request(Source(), vlmopt.Policy.load(policy), question, **facts)


def silent(fraction: float, text: str) -> None:
    assert 0 <= fraction <= 1


@pytest.fixture(scope="module")
def run(loaded: Loaded) -> Run:
    return running.perform(loaded, request(), silent)


def page() -> None:
    """The page of a run without its tabs."""
    import streamlit as st

    from vlmopt.apps.page import results, takeaway

    shown = st.session_state["run"]
    results.figures(shown)
    results.sides(shown)
    results.facts(shown)
    takeaway.show(shown)


def drawn(run: Run) -> AppTest:
    test = AppTest.from_function(page, default_timeout=60)
    test.session_state["run"] = run
    return test.run()


@pytest.mark.parametrize("name", sorted(set(methods.methods()) - MEASURED - set(TOLD)))
def test_every_method_runs_and_is_drawn(loaded: Loaded, name: str) -> None:
    """With the settings that the form starts it with; the slider's own place shows what was really kept."""
    policy = vlmopt.Policy.load(starting(name, DEPTH))
    found = running.perform(loaded, request(policy, max_new_tokens=2), silent)
    test = drawn(found)
    assert not test.exception
    assert len(test.metric) == 5
    if found.ladder is not None:
        true = torch.cat([m.kept for m in found.optimized.report.maps(0)])
        assert torch.equal(found.ladder.kept[found.ladder.own], true)
        assert len(test.select_slider) == 1


def test_what_must_be_measured_before_is_said(loaded: Loaded) -> None:
    for name in MEASURED:
        with pytest.raises((ValueError, TypeError), match=f"{name}: .*(profile|measure|trained)"):
            running.perform(loaded, request(starting(name, DEPTH)), silent)


@pytest.mark.parametrize("name", TOLD)
def test_what_only_python_can_give_is_said(loaded: Loaded, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}:? {TOLD[name]}"):
        running.perform(loaded, request(starting(name, DEPTH)), silent)


@pytest.mark.parametrize("name", ["fastv", "div_prune", "vision_zip", "cd_pruner"])
def test_the_slider_shows_what_a_run_at_that_ratio_keeps(loaded: Loaded, name: str) -> None:
    prompt = running.prepared(loaded.model, loaded.processor, request())
    rungs = ladder(loaded.model, prompt.inputs, {"method": name, "keep_ratio": 0.25}, ratios=(0.1, 0.25, 0.5))
    assert rungs is not None
    assert rungs.ratios == [0.1, 0.25, 0.5]
    with vlmopt.optimized(loaded.model, {"method": name, "keep_ratio": 0.5}):
        loaded.model.generate(**prompt.inputs, max_new_tokens=1, do_sample=False)
        wanted = vlmopt.report(loaded.model).maps(0)
    (found,) = rungs.maps(wanted, 0.5)
    assert torch.equal(found.kept, wanted[0].kept)
    assert torch.equal(found.merged, wanted[0].merged)
    with pytest.raises(ValueError, match="not a rung of this ladder"):
        rungs.maps(wanted, 0.51)


PYRAMID = {"method": "pyramid_drop", "keep_ratio": 0.25, "layers": [2, 3, 4]}


@pytest.mark.parametrize("policy", ["attention-25", "progressive", PYRAMID, "debiased-25"])
def test_the_policy_at_a_rung_keeps_what_the_rung_shows(loaded: Loaded, policy: Any) -> None:
    """As the form would run it: through its dict form."""
    prompt = running.prepared(loaded.model, loaded.processor, request())
    rungs = ladder(loaded.model, prompt.inputs, policy)
    assert rungs is not None
    ratio = rungs.ratios[1]
    with vlmopt.optimized(loaded.model, vlmopt.Policy.from_dict(at_ratio(policy, ratio).to_dict())):
        loaded.model.generate(**prompt.inputs, max_new_tokens=1, do_sample=False)
        wanted = vlmopt.report(loaded.model).maps(0)
    assert torch.equal(rungs.maps(wanted, ratio)[0].kept, wanted[0].kept)
    with pytest.raises(ValueError, match="drops no tokens"):
        at_ratio("dense", 0.5)


def test_later_cuts_climb_no_higher_than_earlier_ones_leave(loaded: Loaded) -> None:
    prompt = running.prepared(loaded.model, loaded.processor, request())
    rungs = ladder(loaded.model, prompt.inputs, "progressive")
    assert rungs is not None
    assert (rungs.layer, rungs.own, rungs.ratios[-1]) == (4, 0.25, 0.5)
    assert ladder(loaded.model, prompt.inputs, "dense") is None
    assert ladder(loaded.model, prompt.inputs, "resize-25") is None
    with pytest.raises(ValueError, match="ratios must be > 0"):
        ladder(loaded.model, prompt.inputs, "attention-25", ratios=(0.0,))


def test_methods_start_with_settings_that_fit_the_model() -> None:
    assert starting("pyramid_drop", 6) == {"method": "pyramid_drop", "keep_ratio": 0.25, "layers": [2, 3, 4]}
    assert "layers" not in starting("pyramid_drop", 32)
    assert starting("debias") == {"method": "debias", "host": {"method": "fastv", "keep_ratio": 0.25}}
    assert starting("min_p") == {"method": "min_p"}
    assert "fastv" in holds("debias", "host")
    assert holds("fastv", "layer") == []
    assert shallower((8, 16, 24), 3) == [1, 2]
    assert [depth_of(name) for name in ("tiny-qwen", "tiny-llava", "owner/name")] == [6, 6, None]


def test_stop_ends_a_run_and_gives_the_model_back(loaded: Loaded) -> None:
    holder = Held(Source(), loaded=loaded)
    arrived, go = threading.Event(), threading.Event()

    def work(progress: Any) -> Any:
        def tell(fraction: float, text: str) -> None:
            if "token 2" in text:
                arrived.set()
                assert go.wait(60)
            progress(fraction, text)

        with holder.alone(tell) as mine:
            return running.perform(mine, request(), tell)

    job = Job(work)
    assert arrived.wait(60)
    job.stop.set()
    go.set()
    assert job.done.wait(60)
    assert (job.error, job.result) == ("Stopped.", None)
    assert not holder.lock.locked()
    with pytest.raises(ValueError, match="not optimized"):
        vlmopt.report(loaded.model)


def test_two_sessions_share_a_model_without_cross_talk(loaded: Loaded) -> None:
    """Runs with different policies at the same time equal those that had the model to themselves."""
    holder = Held(Source(), loaded=loaded)
    policies = ("attention-25", "uniform-50")

    def job(name: str) -> Job:
        def work(progress: Any) -> Run:
            with holder.alone(progress) as mine:
                return running.perform(mine, request(name), progress)

        return Job(work)

    jobs = {name: job(name) for name in policies}
    assert all(one.done.wait(120) for one in jobs.values())
    for name, one in jobs.items():
        alone = running.perform(loaded, request(name), silent)
        assert one.error is None
        assert one.result.optimized.ids == alone.optimized.ids
        kept = [r.optimized.report.maps(0)[0].kept for r in (one.result, alone)]
        assert torch.equal(*kept)
        assert one.result.optimized.report.policy == vlmopt.Policy.load(name).to_dict()


def test_waiting_for_another_session_can_be_stopped() -> None:
    holder = Held(Source())
    with holder.lock:
        job = Job(lambda progress: holder.alone(progress).__enter__())
        job.stop.set()
        assert job.done.wait(10)
    assert job.error == "Stopped."


def test_clicks_lie_in_the_image_as_given(loaded: Loaded) -> None:
    """The bundled model points in pixels of the resized image; the page in those of the given one."""
    small = inputs.sample(0).images[0]
    large = small.resize((448, 448), Image.Resampling.BICUBIC)
    found = running.perform(loaded, request("dense", images=(large,)), silent)
    assert found.dense.point is not None
    units = running.prepared(loaded.model, loaded.processor, found.request).resized
    assert units is not None
    x, y = map(int, found.dense.text.strip("()").split(","))
    assert found.dense.point == pytest.approx((x * 448 / units[0], y * 448 / units[1]))


def test_the_snippet_makes_the_answer_again(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = takeaway.files(run)
    assert set(packed) == {"policy.json", "result.json", "overlay.png", "image.png", "again.py"}
    for name, content in packed.items():
        (tmp_path / name).write_bytes(content)
    before = (tmp_path / "overlay.png").read_bytes()
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(packed["again.py"].decode(), names)
    assert tuple(names["answer"].tolist()) == run.optimized.ids
    again, shown = Image.open(tmp_path / "overlay.png"), Image.open(io.BytesIO(before))
    panel = (0, 0, 672, 600)
    assert again.crop(panel).tobytes() == shown.crop(panel).tobytes()
    assert vlmopt.Policy.load(tmp_path / "policy.json") == run.request.policy


def test_the_command_line_makes_the_answer_again(
    loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = running.perform(loaded, request(question=QUESTION), silent)
    for name, content in takeaway.files(found).items():
        (tmp_path / name).write_bytes(content)
    monkeypatch.chdir(tmp_path)
    program, *words = shlex.split(takeaway.command(found))
    assert program == "vlmopt"
    assert main(words) == 0
    assert f"optimized  {found.optimized.text!r}" in capsys.readouterr().out


def test_a_clip_is_shown_frame_by_frame(loaded: Loaded) -> None:
    given = inputs.sample([chosen.label for chosen in inputs.SAMPLES].index("Video"))
    found = running.perform(loaded, request("video-25", images=(), clip=given.clip, task="answer"), silent)
    test = drawn(found)
    assert not test.exception
    frames = found.optimized.report.maps(0)[0].grid[0]
    assert len(found.shown) == frames > 1
    (slider,) = (s for s in test.slider if s.label == "Frame")
    slider.set_value(frames).run()
    assert not test.exception
    assert f"tokens of frame {frames} are kept" in " ".join(c.value for c in test.caption)
    assert "clip.mp4" in takeaway.files(found)
    assert "--video clip.mp4" in takeaway.command(found)

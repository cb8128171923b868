"""The whole demo page, driven without a browser: one press on Run, the form of every method, errors as sentences."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import fields

import pytest
import streamlit as st
from PIL import Image
from streamlit.testing.v1 import AppTest

import vlmopt
from tests.support.demo import choose, opened, quick, ran, settled, texts, typed  # noqa: F401 (quick is a fixture)
from vlmopt import catalogue, methods
from vlmopt.analysis.starting import starting
from vlmopt.apps.page.words import OWN, WORDS, words
from vlmopt.prefill import SparsePrefill


@pytest.fixture(scope="module", autouse=True)
def _clean() -> Iterator[None]:
    yield
    st.cache_resource.clear()


def form() -> None:
    """The policy form alone."""
    import streamlit as st

    from vlmopt.apps.page.form import policy_form

    st.session_state["policy"] = policy_form(6)


def test_one_press_shows_everything() -> None:
    """The default: bundled model, screenshot, attention-25."""
    page = ran(opened())
    assert not page.exception
    assert not page.error
    run = page.session_state["session"].run
    assert run.request.policy == vlmopt.presets()[catalogue.default()]
    assert run.dense.text == run.optimized.text == "(63, 84)"
    assert "same answer" in texts(page)
    assert "64 of 256 visual tokens" in texts(page).replace("**", "")
    assert [tab.label for tab in page.tabs][-1] == "Take away"
    assert {"Budget sweep", "Time and memory", "Attention sinks"} <= {tab.label for tab in page.tabs}
    figures = {metric.label: metric.value for metric in page.metric}
    assert figures["Visual tokens"] == "256 → 64"
    assert figures["KV cache"] == "3.7× smaller"
    assert figures["To the first token"].endswith(("× faster", "× slower", "as fast"))
    assert "in pixels of the image as given (224 × 224)" in texts(page)
    assert any("vlmopt run" in code.value for code in page.code)

    page.select_slider[0].set_value(0.5).run()
    assert not page.exception
    assert page.session_state["session"].run is run  # nothing was run again
    assert "128 of 256 visual tokens" in texts(page).replace("**", "")
    assert "preview at 50 %" in texts(page)
    assert "Answers and figures are for 25 %." in texts(page)
    next(button for button in page.button if button.label == "Run at 50 %").click().run()
    settled(page)
    assert not page.exception
    again = page.session_state["session"].run
    assert again.request.policy == vlmopt.Policy.load("div_prune:keep_ratio=0.5")
    assert again.request.images == run.request.images
    assert "128 of 256 visual tokens" in texts(page).replace("**", "")
    assert "preview at" not in texts(page)
    assert "settings have changed" not in texts(page)  # the form has the policy that ran
    page.text_input(key="question").set_value("Click Open.").run()
    assert "settings have changed" in texts(page)


def test_the_form_has_a_place_for_every_setting_of_every_method() -> None:
    """Added from the list, each method fills the policy with what it starts from; Remove takes it out again."""
    test = AppTest.from_function(form, default_timeout=60).run()
    for row in methods.describe():
        test.session_state["entries"] = {}
        test.run()
        test.selectbox(key="adding").set_value(row["name"]).run()
        assert not test.exception, row["name"]
        ((number, _),) = test.session_state["entries"].items()
        labels = {widget.label for kind in (
            test.number_input, test.slider, test.selectbox, test.toggle, test.text_input, test.text_area
        ) for widget in kind}  # fmt: skip
        shown = [words(row["name"], s["name"]) for s in row["settings"]]
        assert set(shown) <= labels, row["name"]
        assert len(set(shown)) == len(shown), row["name"]
        assert not any("_" in label or len(label) < 4 for label in shown), row["name"]
        policy = test.session_state["policy"]
        if policy is None:
            assert len(test.error) == 1, row["name"]  # a profile is missing, and the page says so
        else:
            assert policy == vlmopt.Policy.load(starting(row["name"], 6)), row["name"]
        test.button(key=f"remove-{number}").click().run()
        assert test.session_state["policy"] == vlmopt.Policy()


def test_the_form_speaks_in_words_and_tells_the_names_on_hover() -> None:
    test = AppTest.from_function(form, default_timeout=60).run()
    (number,) = test.session_state["entries"]
    slider = test.slider(key=f"m{number}-keep_ratio")
    assert slider.label == "Share of tokens to keep"
    assert slider.help.startswith("`keep_ratio`")
    known = {(row["name"], s["name"]) for row in methods.describe() for s in row["settings"]}
    known |= {("", f.name) for f in fields(SparsePrefill)}
    assert set(WORDS) <= {name for _, name in known}  # no words for settings that are gone
    assert set(OWN) <= known


def test_presets_stand_in_groups_with_a_line_each() -> None:
    test = AppTest.from_function(form, default_timeout=60).run()
    seen = []
    for group in catalogue.groups():
        test.selectbox(key="group").set_value(group).run()
        assert not test.exception
        box = test.radio(key="preset")
        assert test.session_state["policy"] == vlmopt.presets()[box.value]
        assert len(box.proto.captions) == len(box.options)
        seen += box.options
    assert seen == list(vlmopt.presets())
    typed(test, "uniform:keep_ratio=0.5")
    assert test.session_state["policy"] == vlmopt.presets()["uniform-50"]


def test_presets_come_through_the_form_unchanged() -> None:
    test = AppTest.from_function(form, default_timeout=60).run()
    for name, policy in vlmopt.presets().items():
        choose(test, name)
        assert not test.exception
        assert test.session_state["policy"] == policy, name


def test_a_line_fills_the_form() -> None:
    """Typed where a preset is chosen; no file is opened on its word."""

    line = "fastv:keep_ratio=0.5,layer=4+image_boost:alpha=0.3"
    test = typed(AppTest.from_function(form, default_timeout=60).run(), line)
    assert not test.exception
    assert test.session_state["policy"] == vlmopt.Policy.load(line)
    whole = vlmopt.Policy(prune=[vlmopt.pruning.FastV(keep_ratio=0.5, layer=2)], seed=7, gqa="kernel")
    test = typed(AppTest.from_function(form, default_timeout=60).run(), json.dumps(whole.to_dict()))
    assert test.session_state["policy"] == whole  # also what has no widget
    for wrong, says in (("fastvv:layer=4", "did you mean 'fastv'"), ("/etc/passwd", "unknown preset")):
        test = typed(AppTest.from_function(form, default_timeout=60).run(), wrong)
        assert not test.exception
        assert test.session_state["policy"] is None
        assert says in test.error[0].value.replace("\\", "")


def test_settings_reach_the_policy_and_errors_are_sentences() -> None:
    test = AppTest.from_function(form, default_timeout=60).run()
    (number,) = test.session_state["entries"]
    test.slider(key=f"m{number}-keep_ratio").set_value(0.5).run()
    test.selectbox(key=f"m{number}-positions").set_value("pospad").run()
    assert test.session_state["policy"].prune[0].keep_ratio == 0.5
    assert test.session_state["policy"].prune[0].positions == "pospad"
    test.number_input(key=f"m{number}-keep_tokens").set_value(5).run()
    assert test.session_state["policy"] is None
    assert "give exactly one of keep" in test.error[0].value.replace("\\", "")
    choose(test, "debiased-25")
    (number,) = test.session_state["entries"]
    test.slider(key=f"m{number}-host-fastv-keep_ratio").set_value(0.75).run()
    assert test.session_state["policy"].prune[0].host.keep_ratio == 0.75


def test_what_cannot_work_is_said_and_the_page_goes_on() -> None:
    page = opened()
    choose(page, "sinks")
    ran(page)
    assert not page.exception
    assert "no sink dimensions are published" in page.error[0].value
    page.selectbox(key="model").set_value("Directory or Hub id").run()
    assert page.button(key="run").disabled
    page.text_input(key="model-name").set_value("no model").run()
    assert "is not a bundled checkpoint" in texts(page)
    page.text_input(key="model-name").set_value("nobody/nothing-at-all").run()
    ran(page)
    assert not page.exception
    assert "not found" in page.error[0].value.replace("\\", "")
    page.text_input(key="question").set_value(" ").run()
    assert page.button(key="run").disabled


def test_an_upload_is_asked_about() -> None:
    page = opened()
    page.pills(key="image").set_value("Upload").run()
    assert page.button(key="run").disabled
    assert page.segmented_control(key="task").value == "describe"
    assert page.text_input(key="question").value == "Describe the picture."
    page.file_uploader(key="upload").set_value(("../../evil.png", b"", "image/png")).run()
    assert "image is empty (0 bytes): evil.png" in page.error[0].value.replace("\\", "")
    packed = io.BytesIO()
    Image.new("RGB", (3000, 8)).save(packed, "PNG")
    page.file_uploader(key="upload").set_value(("thin.png", packed.getvalue(), "image/png")).run()
    assert not page.exception
    assert "at most 200 times the other" in page.error[0].value.replace("\\", "")
    packed = io.BytesIO()
    Image.new("CMYK", (140, 112), (0, 90, 90, 0)).save(packed, "JPEG")
    page.file_uploader(key="upload").set_value(("../<b>.jpg", packed.getvalue(), "image/jpeg")).run()
    assert not page.error
    assert "converted from CMYK" in texts(page)
    ran(page)
    assert not page.exception
    assert page.session_state["session"].run.request.title == "<b>.jpg"
    assert page.session_state["session"].run.shown[0].size == (140, 112)


def test_a_question_of_the_users_own_stays() -> None:
    page = opened()
    page.text_input(key="question").set_value("What is this?").run()
    page.pills(key="image").set_value("Upload").run()
    assert page.text_input(key="question").value == "What is this?"
    assert page.segmented_control(key="task").value == "click"


def test_samples_bring_their_questions() -> None:
    page = opened()
    page.pills(key="image").set_value("Scene").run()
    assert page.text_input(key="question").value == "Describe the picture."
    assert page.segmented_control(key="task").value == "describe"
    page.pills(key="image").set_value("Video").run()
    choose(page, "video-25")
    page.button(key="run").click().run()
    settled(page)
    assert not page.exception
    assert page.session_state["session"].run.request.clip is not None

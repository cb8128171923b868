"""A reload of the demo finds its results again; runs are pinned; two policies are measured and shown together."""

from __future__ import annotations

import io
from collections.abc import Iterator

import pytest
import streamlit as st
from PIL import Image
from streamlit.testing.v1 import AppTest

import vlmopt
from tests.support.demo import PAGE, PATIENCE, opened, quick, ran, settled, texts  # noqa: F401 (quick is a fixture)
from vlmopt.apps.page import session as sessions
from vlmopt.apps.page.session import PINNED, Session, Sessions
from vlmopt.apps.page.state import Run


@pytest.fixture(scope="module", autouse=True)
def _clean() -> Iterator[None]:
    yield
    st.cache_resource.clear()


def reloaded(page: AppTest) -> AppTest:
    """The same address in a fresh browser session."""
    again = AppTest.from_file(str(PAGE), default_timeout=PATIENCE)
    again.query_params["session"] = address(page)
    return again.run()


def address(page: AppTest) -> str:
    named = page.query_params["session"]
    found = named if isinstance(named, str) else named[0]
    assert found == page.session_state["session"].id
    return found


def test_a_reload_finds_the_running_job_and_then_its_result() -> None:
    page = opened()
    page.text_input(key="question").set_value("Click Open.").run()
    (number,) = page.session_state["entries"]
    page.slider(key=f"m{number}-keep_ratio").set_value(0.4).run()
    page.number_input(key="tokens-click").set_value(9).run()
    page.button(key="run").click().run()
    assert page.session_state["session"].working

    again = reloaded(page)
    assert not again.exception
    assert again.session_state["session"] is page.session_state["session"]
    settled(again)
    run = again.session_state["session"].run
    assert (run.request.question, run.request.max_new_tokens) == ("Click Open.", 9)
    assert run.request.policy == vlmopt.Policy.load("div_prune:keep_ratio=0.4")

    third = reloaded(page)
    assert third.session_state["session"].run is run
    assert len(third.metric) >= 4
    assert third.text_input(key="question").value == "Click Open."
    assert third.number_input(key="tokens-click").value == 9
    assert "settings have changed" not in texts(third)


def test_an_unknown_address_gets_a_session_of_its_own() -> None:
    first, second = opened(), opened()
    assert address(first) != address(second)
    stranger = AppTest.from_file(str(PAGE), default_timeout=PATIENCE)
    stranger.query_params["session"] = "../../etc/passwd"
    assert address(stranger.run()) not in ("../../etc/passwd", address(first), address(second))
    assert len(address(first)) >= 16


def test_an_upload_survives_a_reload_until_it_is_taken_back() -> None:
    packed = io.BytesIO()
    Image.new("RGB", (140, 112), "red").save(packed, "PNG")
    page = opened()
    page.pills(key="image").set_value("Upload").run()
    page.file_uploader(key="upload").set_value(("red.png", packed.getvalue(), "image/png")).run()
    again = reloaded(page)
    assert again.pills(key="image").value == "Upload"
    assert "Still here: red.png" in texts(again)
    assert not again.button(key="run").disabled
    again.file_uploader(key="upload").set_value(("blue.png", b"", "image/png")).run()
    assert again.button(key="run").disabled
    page.file_uploader(key="upload").set_value([]).run()
    assert page.button(key="run").disabled


def test_two_policies_are_measured_in_turn_and_shown_together() -> None:
    page = opened()
    page.selectbox(key="beside-policy").set_value("attention-25").run()
    ran(page)
    assert not page.exception
    run: Run = page.session_state["session"].run
    assert run.rival is not None
    assert run.rival.report.policy == vlmopt.presets()["attention-25"].to_dict()
    assert [metric.value for metric in page.metric if metric.label == "Against dense"] == ["balanced", "attention\\-25"]
    assert [metric.value for metric in page.metric if metric.label == "Visual tokens"] == ["256 → 64"] * 2
    assert len(page.get("image")) >= 3

    page.button(key="pin").click().run()
    assert page.button(key="pin").disabled
    pinned = page.dataframe[0].value
    assert list(pinned["policy"]) == ["balanced", "attention-25"]
    assert list(pinned["on the page"]) == ["yes", "yes"]
    page.segmented_control(key=f"look-{run.id}").set_value("attention-25").run()
    assert not page.exception
    assert "Before layer 2" in texts(page)  # of attention-25, not of balanced

    page.selectbox(key="beside-policy").set_value("dense alone").run()
    page.text_input(key="question").set_value("Click Open.").run()
    ran(page)
    assert page.session_state["session"].run.rival is None
    assert list(page.dataframe[0].value["on the page"]) == ["", ""]
    page.button(key=f"show-{run.id}").click().run()
    assert page.session_state["session"].run is run
    page.button(key=f"unpin-{run.id}").click().run()
    assert page.session_state["session"].pinned == []


def test_a_second_policy_that_cannot_be_read_is_said() -> None:
    page = opened()
    box = page.selectbox(key="beside-policy")
    box.options.append("fastvv:layer=2")
    box.set_value("fastvv:layer=2").run()
    assert "did you mean 'fastv'" in page.error[0].value.replace("\\", "")
    assert page.button(key="run").disabled


def test_a_policy_is_not_compared_with_itself() -> None:
    page = opened()
    page.selectbox(key="beside-policy").set_value("balanced").run()
    assert page.button(key="run").disabled
    assert "Both policies are the same" in texts(page)
    page.radio(key="preset").set_value("gentle").run()
    assert not page.button(key="run").disabled


def test_old_sessions_and_old_pins_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "KEPT", 2)
    known = Sessions()
    first, second = known.add(Session()), known.add(Session())
    assert known.find(first.id) is first  # looked at last
    third = known.add(Session())
    assert [known.find(one.id) for one in (first, second, third)] == [first, None, third]

    class Named:
        def __init__(self, name: str) -> None:
            self.id = name

    session = Session()
    for number in range(PINNED + 1):
        session.pin(Named(str(number)))  # type: ignore[arg-type]
    session.pin(Named("3"))  # type: ignore[arg-type]
    assert [run.id for run in session.pinned] == ["1", "2", "4", "5", "6", "3"]
    folder = session.folder
    assert folder.is_dir()
    del session
    assert not folder.exists()

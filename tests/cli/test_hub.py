"""A Hub that does not answer is given up within seconds, not after minutes of repeated waiting."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest
from huggingface_hub import constants

from vlmopt import hub
from vlmopt.estimation.source import find
from vlmopt.loading import load


@pytest.fixture
def mute(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A Hub that takes connections and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        yield


@pytest.mark.usefixtures("mute")
def test_a_hub_that_does_not_answer_is_not_waited_for() -> None:
    assert hub.WAIT <= 3  # of the five seconds that an answer may take
    start = time.monotonic()
    assert hub.download() == {"local_files_only": True}
    assert time.monotonic() - start == pytest.approx(hub.WAIT, abs=1)
    with pytest.raises(ValueError, match="the Hub cannot be reached and the model is not in its local cache"):
        load("nobody/nothing-at-all")
    with pytest.raises(ValueError, match="its config cannot be had from the Hub"):
        find("nobody/nothing-at-all")
    assert time.monotonic() - start < 30  # of which 9 are waited; without the limit it takes minutes


def test_a_hub_that_answers_anything_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    class Client:
        def head(self, url: str, timeout: float) -> None:
            assert (url, timeout) == (constants.ENDPOINT, hub.WAIT)

    monkeypatch.setattr("huggingface_hub.utils.get_session", Client)
    assert hub.reached()
    assert hub.download() == {}

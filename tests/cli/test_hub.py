"""A Hub that does not answer is given up within seconds, not after minutes of repeated waiting."""

from __future__ import annotations

import shutil
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from vlmopt import Policy, hub, load_checkpoint, scorers
from vlmopt.checkpoints import HERE
from vlmopt.estimation.source import find
from vlmopt.loading import load


@pytest.fixture
def mute(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A Hub that takes connections and never answers, waited for a little only."""
    assert hub.WAIT <= 3  # of the five seconds that an answer may take
    monkeypatch.setattr(hub, "WAIT", 0.3)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        yield


@pytest.mark.usefixtures("mute")
def test_a_hub_that_does_not_answer_is_not_waited_for() -> None:
    start = time.monotonic()
    assert hub.download(revision="main") == {"revision": "main", "local_files_only": True}
    assert time.monotonic() - start == pytest.approx(hub.WAIT, abs=1)


ASKED: dict[str, tuple[Callable[[str], object], str]] = {
    "a model": (load, "the Hub cannot be reached and the model is not in its local cache"),
    "a config": (find, "its config cannot be had from the Hub: the Hub cannot be reached"),
    "a checkpoint": (load_checkpoint, "couldn't connect"),
    "a policy": (Policy.from_pretrained, "under that name: the Hub cannot be reached"),
    "a scorer": (scorers.load, "under that name: the Hub cannot be reached"),
}


@pytest.mark.usefixtures("mute")
@pytest.mark.parametrize("what", ASKED)
def test_nothing_waits_long_for_it(what: str) -> None:
    ask, said = ASKED[what]
    start = time.monotonic()
    with pytest.raises((ValueError, OSError), match=said):
        ask("nobody/nothing-at-all")
    assert time.monotonic() - start < 60  # without the limit it takes minutes; the first one imports transformers


@pytest.mark.usefixtures("mute")
@pytest.mark.parametrize("ask", [Policy.from_pretrained, scorers.load])
def test_what_is_no_name_on_the_hub_is_not_asked_for(
    ask: Callable[[str], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "reached", lambda endpoint=None: pytest.fail("the Hub was asked"))
    with pytest.raises(ValueError, match=r"no Hub id \(owner/name\)"):
        ask("runs/of/mine")


@pytest.mark.usefixtures("mute")
def test_what_says_how_a_checkpoint_is_had_goes_for_its_processor_too(tmp_path: Path) -> None:
    """The Hub does not answer, and a commit of the model lies in a cache of the user's own."""
    place = tmp_path / "models--somebody--tiny"
    shutil.copytree(HERE / "tiny-qwen", place / "snapshots" / "2222")
    (place / "refs").mkdir()
    (place / "refs" / "new").write_text("2222")
    _, processor = load_checkpoint("somebody/tiny", cache_dir=tmp_path, revision="new")
    assert processor.image_token in processor.tokenizer.get_vocab()


def test_who_has_decided_how_the_hub_is_asked_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "reached", lambda endpoint=None: endpoint == "https://mirror")
    for said in ({"local_files_only": False}, {"proxies": {"https": "proxy"}}, {"endpoint": "https://mirror"}):
        assert hub.download(**said) == said
    assert hub.download() == {"local_files_only": True}


def test_a_hub_that_answers_anything_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    class Client:
        def head(self, url: str, timeout: float) -> None:
            assert (url, timeout) == (constants.ENDPOINT, hub.WAIT)

    monkeypatch.setattr("huggingface_hub.utils.get_session", Client)
    assert hub.reached()
    assert hub.download() == {}

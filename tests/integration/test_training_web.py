"""Stages that learn to read web pages: images on disk come back as they were, and both losses can be lowered."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from vlmopt.synthetic import World, screen
from vlmopt.synthetic.web.stored import Windows, make
from vlmopt.synthetic.words import FIRST_SLOT
from vlmopt.training.data import Packer, Share
from vlmopt.training.language import Reader
from vlmopt.training.qwen import QWEN
from vlmopt.training.tower import dense_loss
from vlmopt.training.type import TypeStage
from vlmopt.training.vocabulary import build_tokenizer
from vlmopt.training.web import WebStage

SMALL = {(168, 168): 1.0}


def drawn(size: tuple[int, int], count: int, number: int) -> Iterator[World]:
    """Stands in for the browser."""
    yield from (screen(100 * number + seed, size, questions=4) for seed in range(count))


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("windows")
    make(folder, SMALL, 12, drawn)
    return folder


def test_windows_come_back_as_they_were(stored: Path) -> None:
    windows = Windows(stored, SMALL)
    for index, world in enumerate(drawn((168, 168), 12, 0)):
        again = windows.world((168, 168), index)
        assert (np.asarray(again.image) == np.asarray(world.image)).all()
        assert (again.cells == world.cells).all()
        assert (again.questions, again.objects) == (world.questions, world.objects)
    first, second = (windows.draw(5, 4, (168, 168)) for _ in range(2))
    assert [w.questions for w in first] == [w.questions for w in second]


def test_what_is_there_is_not_made_again(stored: Path) -> None:
    def never(size: tuple[int, int], count: int, number: int) -> Iterator[World]:
        raise AssertionError
        yield

    make(stored, SMALL, 12, never)


def test_both_stages_reach_tower_and_reader(stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    architecture = replace(QWEN, sizes=SMALL, probed_layer=None)
    tokenizer = build_tokenizer()
    packer = Packer(tokenizer, architecture)
    model = architecture.build(tokenizer, 0)
    windows = Windows(stored, SMALL)
    monkeypatch.setattr("vlmopt.training.type.SIZE", (168, 168))
    loss, counts = TypeStage(model, packer, Share(6), windows)(0)
    loss.backward()
    assert counts["web_name"][1] > 0
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in architecture.visual(model).parameters())
    model.zero_grad()
    reader = Reader(model, packer)
    loss, counts = WebStage(model, reader, packer, Share(6), windows)(1)
    loss.backward()
    assert {"web_name", "screen_name", "click"} & set(counts) >= {"web_name"}
    for part in (architecture.visual(model), model.model.language_model.layers):
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in part.parameters())


def test_a_named_cell_weighs_as_an_object_whatever_its_sort() -> None:
    """Type outside any control has a name and no sort; it must not weigh as little as background."""
    torch.manual_seed(0)
    table = torch.nn.functional.normalize(torch.randn(60, 16), dim=1)
    ids = (torch.arange(len(FIRST_SLOT)), torch.arange(20) + 38)
    slots = torch.full((2, 1, 4), -1)
    slots[1] = -2
    slots[0, 0, 0] = 3
    tokens = torch.zeros(1, 4, 16)
    _, counts = dense_loss(tokens, slots, ids, table)
    assert counts["screen_name"][1] == 1

"""A second look at bundled models: both answers, the second image, its costs, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

import vlmopt
from tests.support.looked_at import scene
from vlmopt.looking.ask import ask
from vlmopt.looking.draw import draw
from vlmopt.looking.focus import GENERAL
from vlmopt.looking.memory import GeneralMaps
from vlmopt.looking.refine import pixel_limit
from vlmopt.policy import Policy

QUESTION = "What colour is the circle?"


@pytest.fixture(scope="module", params=["tiny-qwen", "tiny-llava"])
def loaded(request: Any) -> tuple[Any, Any]:
    return vlmopt.load_checkpoint(request.param)


@pytest.fixture(scope="module")
def qwen() -> tuple[Any, Any]:
    return vlmopt.load_checkpoint("tiny-qwen")


@pytest.mark.parametrize("refine", ["mask", "crop"])
def test_the_second_answer_is_about_the_second_image(loaded: tuple[Any, Any], refine: str) -> None:
    found = vlmopt.second_look(*loaded, scene(), QUESTION, refine=refine)
    assert found.fallback is None
    assert found.first_answer == "red"
    again, _ = ask(*loaded, [found.image], QUESTION, Policy(), 64)
    assert found.answer == again
    left, top, right, bottom = found.box
    assert 0 <= left < right <= 224
    assert 0 <= top < bottom <= 160
    kept = np.zeros((160, 224), dtype=bool)
    kept[top:bottom, left:right] = True
    assert not (found.focus.pixels & ~kept).any()
    if refine == "mask":
        assert found.image.size == (224, 160)
        assert not np.asarray(found.image)[~found.focus.pixels].any()
    else:
        assert found.image.width / found.image.height == pytest.approx((right - left) / (bottom - top), rel=0.05)
        assert found.image.width * found.image.height <= pixel_limit(loaded[1], scene())


def test_the_policy_is_of_the_second_answer_and_both_looks_are_counted(loaded: tuple[Any, Any]) -> None:
    memory = GeneralMaps()
    found = vlmopt.second_look(*loaded, scene(), QUESTION, refine="mask", policy="uniform-25", memory=memory)
    n = len(found.focus.score)
    assert [cost["visual"] for cost in found.costs.values()] == [n, n, n]
    assert found.costs["second"]["kept"] == n // 4
    assert f"{3 * n} visual ones" in str(found)
    assert f"of which {n // 4} stay" in str(found)
    again = vlmopt.second_look(*loaded, scene(), "Is there a star?", refine="mask", memory=memory)
    assert again.costs["general"]["visual"] == 0
    assert "none for the general instruction, which was remembered" in str(again)


def test_an_installed_policy_answers_and_stays(loaded: tuple[Any, Any]) -> None:
    model, processor = loaded
    with vlmopt.optimized(model, "uniform-25"):
        found = vlmopt.second_look(model, processor, scene(), QUESTION, refine="mask")
        assert found.costs["second"]["kept"] == len(found.focus.score) // 4
    dense = vlmopt.second_look(model, processor, scene(), QUESTION, refine="mask")
    assert dense.costs["second"]["kept"] == len(dense.focus.score)
    assert dense.box == found.box


def test_where_there_is_nothing_to_cut_out_the_first_answer_stands(loaded: tuple[Any, Any]) -> None:
    image = scene()
    found = vlmopt.second_look(*loaded, image, GENERAL, max_new_tokens=4)
    assert found.fallback is not None
    assert found.image is image
    assert found.answer == found.first_answer
    assert found.box == (0, 0, 224, 160)
    assert found.costs["second"]["visual"] == 0
    assert "the whole image" in str(found)
    pruned = vlmopt.second_look(*loaded, image, GENERAL, max_new_tokens=4, policy="uniform-25")
    assert 0 < pruned.costs["second"]["kept"] < pruned.costs["second"]["visual"]
    whole = vlmopt.second_look(*loaded, image, QUESTION, share=1.0, most=1)
    assert whole.image is image


def test_both_images_are_for_models_that_know_several(qwen: tuple[Any, Any]) -> None:
    one = vlmopt.second_look(*qwen, scene(), QUESTION, refine="mask")
    both = vlmopt.second_look(*qwen, scene(), QUESTION, refine="mask", answer="both")
    assert both.costs["second"]["visual"] == 2 * one.costs["second"]["visual"]
    with pytest.raises(ValueError, match="'llava' was not trained"):
        vlmopt.second_look(*vlmopt.load_checkpoint("tiny-llava"), scene(), QUESTION, answer="both")


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"refine": "cut"}, "refine must be crop or mask"),
        ({"answer": "all"}, "answer must be refined or both"),
        ({"policy": "balancd"}, "balancd"),
        ({"policy": "uniform:keep_ratio=0.5,layer=99"}, "99"),
        ({"look": "sideways"}, "unknown look"),
        ({"layers": ""}, "empty part"),
        ({"question": None}, "question must be a text that is not empty, got None"),
        ({"general": " "}, "general must be a text"),
        ({"look": lambda question, general: question.mean((0, 1)).numpy()}, "tensor of .* scores, .* got a ndarray"),
    ],
)
def test_what_cannot_work_is_refused(qwen: tuple[Any, Any], settings: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        vlmopt.second_look(*qwen, scene(), **{"question": QUESTION, **settings})
    assert not any(hasattr(module, "_vlmopt_plan") for module in qwen[0].modules())


def test_it_tells_itself_as_json_and_as_a_drawing(qwen: tuple[Any, Any]) -> None:
    found = vlmopt.second_look(*qwen, scene(), QUESTION, look="relative")
    told = json.loads(json.dumps(found.to_dict()))
    assert told["box"] == list(found.box)
    assert told["size"] == [224, 160]
    assert 0 < told["share"] < 1
    assert set(told["tokens"]) == {"question", "general", "second"}
    sheet = draw(scene(), found)
    assert sheet.width > sheet.height > 300
    box = np.asarray(sheet)[..., 0] > 0
    assert box.any()

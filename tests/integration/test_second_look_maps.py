"""Maps of a second look on models: exact, cached as uncached, alone as in a batch, and what is refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

import vlmopt
import vlmopt.prompt
from tests.support.families import FAMILIES, GREEDY
from tests.support.families import Image as Shown
from tests.support.looked_at import scene
from vlmopt.looking.focus import GENERAL, focus, focused, look_of
from vlmopt.looking.hearing import RowListener, hear
from vlmopt.looking.memory import GeneralMaps
from vlmopt.policy import Policy

QUESTION = "What colour is the circle?"


@pytest.fixture(scope="module", params=["tiny-qwen", "tiny-llava"])
def loaded(request: Any) -> tuple[Any, Any]:
    return vlmopt.load_checkpoint(request.param)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl", "llava", "llava_next", "internvl", "gemma3"])
def test_rows_are_the_mean_over_heads_of_eager_attention(family: str) -> None:
    row = FAMILIES[family]
    batch = row.inputs([[3, Shown(0), 5], [9, Shown(0), 2]])
    model = copy.deepcopy(row.build("eager"))
    listener = RowListener(layers="0:", steps=3)
    with vlmopt.optimized(model, Policy(attention=[listener])):
        ids = model.generate(**batch(), **GREEDY, max_new_tokens=4)
    found = model.generate(**batch(), **GREEDY, max_new_tokens=4, output_attentions=True, return_dict_in_generate=True)
    assert torch.equal(ids, found.sequences)
    assert sorted(listener.seen) == list(range(6))
    for layer, rows in listener.seen.items():
        assert len(rows) == 3
        for step, heard in enumerate(rows):
            eager = found.attentions[step][layer][:, :, -1].float().mean(1)
            total = batch.ids.shape[1] + step  # a sliding layer keeps the last keys alone
            full = torch.nn.functional.pad(eager, (total - eager.shape[1], 0))
            wanted = [full[b, : len(visual)][visual] for b, visual in enumerate(batch.visual)]
            torch.testing.assert_close(heard, torch.stack(wanted), atol=1e-6, rtol=0)


def heard(loaded: tuple[Any, Any], prompts: list[tuple[str, int]], steps: int = 4) -> list[Any]:
    return hear(*loaded, scene(), prompts, layers="50%:", steps=steps, sinks=True)


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_a_question_is_heard_in_a_batch_as_alone(loaded: tuple[Any, Any]) -> None:
    alone = [heard(loaded, [prompt])[0] for prompt in ((QUESTION, 8), (GENERAL, 4))]
    for one, both in zip(alone, heard(loaded, [(QUESTION, 8), (GENERAL, 4)]), strict=True):
        close(one.attention, both.attention)
        assert (one.answer, one.tokens, one.prompt_tokens) == (both.answer, both.tokens, both.prompt_tokens)
        assert torch.equal(one.sinks, both.sinks)


def test_the_cache_of_a_call_changes_no_map(loaded: tuple[Any, Any]) -> None:
    cached = heard(loaded, [("Describe the image.", 5)])[0]
    model = copy.deepcopy(loaded[0])
    model.generation_config.use_cache = False
    plain = heard((model, loaded[1]), [("Describe the image.", 5)])[0]
    assert cached.answer == plain.answer
    assert len(plain.attention) == len(cached.attention)
    close(plain.attention, cached.attention)


def test_remembered_maps_give_the_same_focus(loaded: tuple[Any, Any]) -> None:
    memory = GeneralMaps()
    first = focus(*loaded, scene(), "Is there a star?", memory=memory)
    again = focus(*loaded, scene(), QUESTION, memory=memory)
    fresh = focus(*loaded, scene(), QUESTION)
    assert (first.remembered, again.remembered, fresh.remembered) == (False, True, False)
    assert (memory.hits, memory.misses) == (1, 1)
    close(again.score, fresh.score)
    assert again.box == fresh.box
    assert focus(*loaded, scene().rotate(180), QUESTION, memory=memory).remembered is False
    assert focus(*loaded, scene(), QUESTION, memory=memory, steps=1).remembered is False
    with pytest.raises(TypeError, match=r"memory must be a .*GeneralMaps, got dict"):
        focus(*loaded, scene(), QUESTION, memory={})


def test_memory_lets_go_of_what_was_used_longest_ago(loaded: tuple[Any, Any]) -> None:
    memory = GeneralMaps(2)
    images = [Image.new("RGB", (56, 56), colour) for colour in ("red", "green", "blue")]
    keys = [memory.key(*loaded, image) for image in images]
    held: Any = object()
    for key in keys[:2]:
        memory.put(key, held)
    assert memory.get(keys[0]) is held
    memory.put(keys[2], held)
    assert [memory.get(key) is held for key in keys] == [True, False, True]
    assert memory.key(*loaded, images[0]) != memory.key(copy.deepcopy(loaded[0]), loaded[1], images[0])
    with pytest.raises(ValueError, match="most"):
        GeneralMaps(0)


def test_identical_prompts_leave_the_image_whole(loaded: tuple[Any, Any]) -> None:
    found = focus(*loaded, scene(), GENERAL)
    assert found.fallback is not None
    assert "nowhere" in found.fallback
    assert found.box == (0, 0, 224, 160)
    assert found.pixels.all()
    assert found.tokens.all()


def test_the_whole_share_leaves_the_image_whole(loaded: tuple[Any, Any]) -> None:
    found = focus(*loaded, scene(), QUESTION, share=1.0, most=1)
    assert found.fallback is not None
    assert "nothing is left out" in found.fallback
    assert found.box == (0, 0, 224, 160)


def test_a_planted_map_makes_the_box_and_a_factor_changes_nothing(loaded: tuple[Any, Any]) -> None:
    """Attention is planted under the red circle, by its cells in the report's own coordinates."""
    question, general = heard(loaded, [(QUESTION, 1), (GENERAL, 1)], steps=1)
    (only,) = question.maps
    _, h, w = only.grid
    side = max(scene().size) if loaded[0].config.model_type == "llava" else None  # padded to a square
    wide, high = (side, side) if side else scene().size
    x = (only.coords[:, 2] + 0.5) * wide / w - (wide - 224) / 2
    y = (only.coords[:, 1] + 0.5) * high / h - (high - 160) / 2
    planted = ((x > 150) & (x < 190) & (y > 30) & (y < 70)).float()
    found = []
    for factor in (0.001, 0.1):
        asked = copy.copy(question)
        object.__setattr__(asked, "attention", factor * (0.02 + planted)[None, None])
        usual = copy.copy(general)
        object.__setattr__(usual, "attention", torch.full((1, 1, len(planted)), 0.01))
        found.append(focused(scene().size, asked, usual, look_of("contrast", None, None), 0.06, 1, loaded))
    assert found[0].box == found[1].box
    assert (found[0].pixels == found[1].pixels).all()
    left, top, right, bottom = found[0].box
    inner = max(0, min(right, 190) - max(left, 150)) * max(0, min(bottom, 70) - max(top, 30))
    assert inner / ((right - left) * (bottom - top) + 1600 - inner) >= 0.5
    assert found[0].tokens[planted.bool()].float().mean() > 0.8


def test_maps_that_are_not_finite_or_empty_leave_the_image_whole(loaded: tuple[Any, Any]) -> None:
    for number, why in ((float("nan"), "not finite"), (0.0, "empty")):
        found = focus(*loaded, scene(), QUESTION, look=lambda asked, usual, n=number: asked[0, 0] * 0 + n)
        assert why in str(found.fallback)
        assert found.pixels.all()


def test_a_function_is_told_both_maps(loaded: tuple[Any, Any]) -> None:
    told = []

    def look(asked: Tensor, usual: Tensor) -> Tensor:
        told.append((asked.shape, usual.shape))
        return asked.sum((0, 1))

    found = focus(*loaded, scene(), QUESTION, look=look, layers="-2:", steps=2)
    assert told[0] == (torch.Size([found.steps, 2, len(found.score)]),) * 2


def test_the_relative_look_is_a_window(loaded: tuple[Any, Any]) -> None:
    found = focus(*loaded, scene(), QUESTION, look="relative")
    left, top, right, bottom = found.box
    assert found.fallback is None
    assert found.steps == 1
    assert found.pixels[top:bottom, left:right].all()
    assert found.pixels.sum() == (right - left) * (bottom - top)
    assert (right - left) / 224 == pytest.approx((bottom - top) / 160, abs=0.02)


def test_the_model_is_given_back_as_it_came(loaded: tuple[Any, Any]) -> None:
    model = copy.deepcopy(loaded[0])
    focus(model, loaded[1], scene(), QUESTION)
    assert not any(hasattr(module, "_vlmopt_plan") for module in model.modules())
    with vlmopt.optimized(model, "uniform-25"):
        focus(model, loaded[1], scene(), QUESTION)
        inputs = vlmopt.prompt.image_prompt(loaded[1], QUESTION, [scene()])
        model.generate(**inputs, max_new_tokens=1, do_sample=False)
        kept = vlmopt.report(model).samples[0]
        assert kept["visual_tokens_kept"] < kept["visual_tokens"]


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"look": "contrst"}, "contrast"),
        ({"look": 3}, "function of two maps"),
        ({"share": 0.0}, "share"),
        ({"most": 0}, "most"),
        ({"steps": 0}, "steps"),
        ({"sinks": "drop"}, "leave_out or keep"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"layers": "99"}, "does not exist"),
    ],
)
def test_settings_out_of_range_are_refused(loaded: tuple[Any, Any], settings: dict[str, Any], why: str) -> None:
    with pytest.raises((ValueError, TypeError), match=why):
        focus(*loaded, scene(), QUESTION, **settings)

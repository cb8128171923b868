"""What a call is asked is read where `generate` reads it: its arguments, a config among them, or the model's own."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

import vlmopt
from tests.support.families import FAMILIES, Image
from vlmopt.attention_fix import ImageBoost

LLAVA = FAMILIES["llava"]
WAYS = ("argument", "config", "config by place", "the model's own", "the model's own, beside a config")


def asked(model: Any, way: str, given: dict[str, Any], **settings: Any) -> Any:
    """Call `generate` with settings that are handed over in one way."""
    if way == "argument":
        return model.generate(**given, **settings)
    if way.startswith("config"):
        config = GenerationConfig(**settings)
        if way == "config":
            return model.generate(**given, generation_config=config)
        return model.generate(given.pop("input_ids"), config, **given)
    length = settings.pop("max_new_tokens")
    model.generation_config = GenerationConfig(**settings)
    if way == "the model's own":
        return model.generate(**given, max_new_tokens=length)
    return model.generate(**given, generation_config=GenerationConfig(max_new_tokens=length))


BRANCHING: list[dict[str, Any]] = [{"num_beams": 2}, {"prompt_lookup_num_tokens": 2}, {"assistant_early_exit": 2}]
if hasattr(GenerationConfig(), "use_mtp"):
    BRANCHING.append({"use_mtp": True})


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("setting", BRANCHING, ids=str)
def test_branches_are_seen(way, setting):
    model, given = (
        vlmopt.optimize(copy.deepcopy(LLAVA.build()), ImageBoost(gamma=1.2)),
        LLAVA.inputs([[5, Image(0), 7]])(),
    )
    with pytest.raises(ValueError, match="one sequence per sample and step"):
        asked(model, way, given, max_new_tokens=3, do_sample=False, **setting)


class Ending(LogitsProcessor):
    """The first sample says 20, 21, 22, the second one number after the other."""

    def __init__(self) -> None:
        self.step = 0

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        out = torch.full_like(scores, -torch.inf)
        out[0, 20 + min(self.step, 2)] = out[1, 100 + self.step] = 0
        self.step += 1
        return out


@pytest.mark.parametrize("way", WAYS)
def test_what_fills_a_text_up_behind_its_end_is_no_repetition(way):
    given = LLAVA.inputs([[5, Image(0), 7], [3, Image(1), 6]])() | {"logits_processor": LogitsProcessorList([Ending()])}
    model = vlmopt.optimize(copy.deepcopy(LLAVA.build()), ImageBoost(watchdog="mark"))
    out = asked(model, way, given, max_new_tokens=60, do_sample=False, eos_token_id=22, pad_token_id=23)
    assert out[0, -57:].tolist() == [23] * 57
    assert vlmopt.report(model).repeating == []


def test_guidance_says_that_a_forward_has_none():
    with vlmopt.optimized(copy.deepcopy(LLAVA.build()), ImageBoost(gamma=1.2)) as model, torch.no_grad():
        model(**LLAVA.inputs([[5, Image(0), 7]])())
        (skipped,) = vlmopt.report(model).skipped
        assert skipped["what"] == "guidance of image_boost"
        model.generate(**LLAVA.inputs([[5, Image(0), 7]])(), max_new_tokens=2, do_sample=False)
        assert not vlmopt.report(model).skipped


def test_a_model_without_a_head_has_no_ends_of_texts():
    model = copy.deepcopy(LLAVA.build()).model
    with vlmopt.optimized(model, ImageBoost(watchdog="mark")), torch.no_grad():
        assert model(**LLAVA.inputs([[5, Image(0), 7]])()).last_hidden_state.isfinite().all()

"""What the front end makes of items under settings that a client may send. Processors alone, no engine."""

from __future__ import annotations

import pytest

from vlmopt import Policy

from . import attacks
from .test_parity import BARE, FLAT_POSITIONS, TEXT
from .test_video import clip

UNIFORM = {"method": "uniform", "keep_ratio": 0.5}


@pytest.mark.parametrize(("name", "settings"), [
    ("qwen2_5_vl", {"merge_size": 1}),
    ("qwen2_5_vl", {"patch_size": 28}),
    ("qwen3_vl", {"temporal_patch_size": 1}),
    ("tiny_llava", {"size": {"height": 28, "width": 28}, "do_center_crop": False}),
    ("llava_onevision", {"image_grid_pinpoints": [[112, 112]]}),
    ("llava_onevision", {"size": {"height": 56, "width": 56}}),
    ("internvl", {"size": {"height": 56, "width": 56}}),
])  # fmt: skip
def test_settings_that_do_not_fit_the_tower_are_refused(processed, images, name, settings):
    positions = "repack" if name in FLAT_POSITIONS else "keep"
    text = BARE if name in FLAT_POSITIONS[1:] else TEXT
    policy = {**UNIFORM, "positions": positions}
    whole, half = (processed(name, {"image": images[:1]}, text, {"vlmopt": p}) for p in (None, policy))
    assert len(half["prompt_token_ids"]) < len(whole["prompt_token_ids"])
    for p in (None, policy):
        with pytest.raises(ValueError, match=r"^vlmopt: |Failed to apply"):
            processed(name, {"image": images[:1]}, text, {"vlmopt": p, **settings})


def test_the_policy_of_a_request_is_read_once(processed, images, monkeypatch):
    settings = {"vlmopt": {"method": "div_prune", "keep_ratio": 0.25}}
    first = processed("qwen2_5_vl", {"image": images[:1]}, TEXT, settings)
    read, load = [], Policy.load
    monkeypatch.setattr(Policy, "load", lambda *args, **more: read.append(args) or load(*args, **more))
    assert processed("qwen2_5_vl", {"image": images[:1]}, TEXT, settings)["mm_hashes"] == first["mm_hashes"]
    assert len(read) == 1


def test_no_engine_takes_items_of_another_policy_or_those_with_positions_for_its_own(processed, images):
    of = []
    for policy in (None, UNIFORM, {**UNIFORM, "keep_ratio": 0.25}):
        [item] = processed("qwen2_5_vl", {"image": images[:1]}, TEXT, {"vlmopt": policy})["mm_hashes"]["image"]
        of.append(item.partition("-vlmopt-"))
    assert len({item for item, _, _ in of}) == 1
    assert len({mark for _, _, mark in of} - {""}) == 3


def test_frames_that_a_processor_leaves_out_are_missed(processed):
    array, facts = clip(112, 112)
    data, text = {"video": [(array, facts)]}, BARE.replace("image_pad", "video_pad")
    assert processed("llava_onevision", data, text, {"do_sample_frames": False})["prompt_token_ids"]
    with pytest.raises(ValueError, match="which this model's tower does not"):
        processed("llava_onevision", data, text, {"do_sample_frames": True, "num_frames": 2})


@pytest.mark.parametrize("name", ["tiny_qwen", "qwen3_vl", "tiny_llava", "llava_onevision", "internvl"])
def test_whatever_settings_say_the_answer_is_a_prompt_or_a_refusal(processed, images, name):
    text = BARE if name in FLAT_POSITIONS[1:] else TEXT
    for settings in attacks.SETTINGS:
        try:
            assert processed(name, {"image": images[1:]}, text, {"vlmopt": None, **settings})["prompt_token_ids"]
        except ValueError:
            continue

"""The same answers as `vlmopt.optimize` on transformers: families x selectors, one engine per family.

Policies come per request, so every engine serves all of them in turns. Images stand alone in their prompts: there
vlmopt's budget over a prompt is the image's own.
"""

from __future__ import annotations

from typing import Any

import pytest

from .choices import READ, Choices, difference, nearly_tied, same_rows
from .engines import Reference, same

TEXT = "<|user|><|vision_start|><|image_pad|><|vision_end|>What is in the picture?<|assistant|>"
BARE = "<|user|><|image_pad|>What is in the picture?<|assistant|>"
EVERYWHERE = [
    {"method": "uniform", "keep_ratio": 0.25},
    {"method": "random", "keep_ratio": 0.5, "seed": 3},
    {"method": "div_prune", "keep_ratio": 0.25},
    {"method": "div_prune", "keep_tokens": 7},
    {"method": "cd_pruner", "keep_ratio": 0.25, "relevance": "none"},
    {"method": "cen_prune", "keep_ratio": 0.25},
    {"method": "zeroth_order", "keep_ratio": 0.25},
    {"method": "vision_zip", "keep_ratio": 0.25},
    {"method": "vis_pruner", "keep_ratio": 0.25},
    {"method": "holov", "keep_ratio": 0.25},
    {"method": "scope", "keep_ratio": 0.25},
    {"method": "hiprune", "keep_ratio": 0.25, "object_layer": 1},
    {"method": "fastvid", "keep_ratio": 0.25},
    {"method": "vidcom2", "keep_ratio": 0.25},
    {"method": "evs", "keep_ratio": 0.25},
]
UNBOUND = [  # of the question that they read by default
    {"method": "dart", "keep_ratio": 0.25, "pivots_text": 0},
    {"method": "mmtok", "keep_ratio": 0.25, "relevance": "none"},
]
IN_TOWER = ("vision_zip", "vis_pruner", "holov", "scope", "hiprune", "fastvid")
OF_PIXELS = [
    {"method": "ui_graph", "keep_ratio": 0.25},
    {"method": "div_prune", "keep_ratio": 0.25, "padding": "blank"},
]
OF_GRIDS = [
    {"method": "pixel_redundancy"},
    [{"method": "pixel_redundancy"}, {"method": "div_prune", "keep_ratio": 0.2}],
    [{"method": "pixel_redundancy", "tolerance": 0.02}, {"method": "uniform", "keep_ratio": 0.2}],
    {"method": "uniform", "keep_ratio": 0.25, "positions": "pospad"},
    {"method": "random", "keep_ratio": 0.25, "positions": "pospad", "marker": "last"},
    {"method": "pixel_redundancy", "positions": "pospad"},
]
TRAINED = {"positions": "pospad", "marker": "trained", "marker_from": "tiny-qwen"}
MARKED = [
    {"method": "uniform", "keep_ratio": 0.25, **TRAINED},
    {"method": "ui_graph", "keep_ratio": 0.25, **TRAINED},
]
AT_START = {"tiny_qwen": MARKED[0]}  # weights are loaded for the engine's own policy
FAMILIES = {  # name: policies, block of the tower that is read
    "tiny_qwen": ([*EVERYWHERE, *OF_PIXELS, *OF_GRIDS, *MARKED], -1),
    "qwen2_vl": ([*EVERYWHERE, *OF_PIXELS, *OF_GRIDS], -2),
    "qwen2_5_vl": ([*EVERYWHERE, *OF_PIXELS, *OF_GRIDS], -1),
    "qwen3_vl": ([*EVERYWHERE, *OF_PIXELS, *OF_GRIDS], -2),
    "tiny_llava": ([*EVERYWHERE, *OF_PIXELS], -2),
    "llava_onevision": (EVERYWHERE, -2),
    "internvl": ([*EVERYWHERE, *OF_PIXELS], -2),
}
FLAT_POSITIONS = ("tiny_llava", "llava_onevision", "internvl")


def fitted(policy: Any, name: str, block: int) -> Any:
    """The policy with the family's block of the tower, and its positions."""
    if isinstance(policy, list):
        return [fitted(method, name, block) for method in policy]
    policy = dict(policy)
    if policy["method"] in IN_TOWER:
        policy["tower_layer"] = block
    if name in FLAT_POSITIONS:
        policy["positions"] = "repack"
    return policy


def as_policy(policy: Any) -> dict[str, Any]:
    """The form with a seed, which both sides read."""
    methods = [dict(method) for method in (policy if isinstance(policy, list) else [policy])]
    seeds = [method.pop("seed", 0) for method in methods]
    return {"prune": methods, "seed": max(seeds)}


@pytest.mark.parametrize("name", ["tiny_qwen"])
def test_a_smaller_image_is_the_same_up_to_whole_grey_levels(name, engine_of, checkpoints, images):
    """Pixels travel to the tower as bytes, so a resized image is rounded, as any image file is."""
    engine, reference = engine_of(name, AT_START[name]), Reference(checkpoints(name))
    for image in images:
        policy = {"method": "resize", "keep_ratio": 0.4}
        served, expected = engine.ask(TEXT, image, policy=policy), reference.ask(TEXT, image, policy=policy)
        assert served.prompt == expected.prompt
        assert same(served, expected, tolerance=0.05)


@pytest.mark.parametrize("name", ["tiny_qwen"])
def test_every_image_has_a_budget_of_its_own(name, engine_of, checkpoints, images):
    engine = engine_of(name, AT_START[name])
    both = TEXT.replace("<|vision_end|>", "<|vision_end|><|vision_start|><|image_pad|><|vision_end|>", 1)
    policy = {"method": "div_prune", "keep_tokens": 20}
    words = engine.ask(both, *images[:2], policy=policy).prompt - 2 * 20
    assert engine.ask(both, *images[:2], policy={**policy, "keep_tokens": 33}).prompt == words + 2 * 33


@pytest.mark.parametrize("unbound", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_answers_are_those_of_vlmopt_on_transformers(
    name, unbound, engine_of, checkpoints, images, framed, monkeypatch
):
    policies, block = FAMILIES[name]
    policies = UNBOUND if unbound else policies
    engine, reference, choices = engine_of(name, AT_START.get(name)), Reference(checkpoints(name)), Choices(monkeypatch)
    text = BARE if name in FLAT_POSITIONS[1:] else TEXT
    wrong, first, ties, asked = [], set(), 0, 0
    for policy in [None, *(as_policy(fitted(p, name, block)) for p in policies)]:
        for image in framed if of_pixels(policy) else images:
            served, ours = choices.of(engine.ask, text, image, policy=policy)
            expected, theirs = choices.of(reference.ask, text, image, policy=policy)
            apart = max((difference(a[0], b[0]) for a, b in zip(ours, theirs, strict=True)), default=0.0)
            if not all(same_rows(a, b) for a, b in zip(ours, theirs, strict=True)):
                tied = all(nearly_tied(a, b) for a, b in zip(ours, theirs, strict=True))
                ties += tied
                if not tied:
                    wrong.append((policy, "other rows", apart))
                    continue
                with choices.repeating(ours[0]):
                    expected = reference.ask(text, image, policy=policy)
            if served.prompt != expected.prompt or not same(served, expected) or apart > READ:
                wrong.append((policy, apart, served, expected))
            first.add(round(served.logprobs[0], 3))
            asked += 1
    assert not wrong, "\n".join(map(str, wrong))
    assert ties <= 1
    assert len(first) > asked // 2  # the rows that stay are seen in what is said, so equal answers say something


def of_pixels(policy: Any) -> bool:
    methods = policy["prune"] if policy else []
    return any(m["method"] in ("pixel_redundancy", "ui_graph") or "padding" in m for m in methods)

"""Calibration of sinks and heads: what was planted is found, what is not there is not, and doubts are spoken out."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch

from tests.support.correction_oracle import text_only_heads
from tests.support.massive import DIMS, FAMILY, SINK, Plan, planted, prompt
from tests.support.mechanism import forward
from vlmopt.attention_fix import HeadProfile, SinkProfile
from vlmopt.calibration import Collector
from vlmopt.calibration.heads import HeadSums, rank_correlation, sharpness
from vlmopt.calibration.sink_dims import Layer, candidates, half
from vlmopt.calibration.sinks import SinkCollector
from vlmopt.checks import model_facts
from vlmopt.pruning import FastV
from vlmopt.runtime.structure import structure_of

TAU = 0.3125 * 8


def look(model: Any, count: int = 8) -> SinkCollector:
    collector = SinkCollector(model)
    for seed in range(count):
        collector.add(prompt(seed)())
    return collector


# ---------------------------------------------------------------- sinks
def test_planted_sinks_are_found():
    model = planted()
    before = forward(model, prompt(0))
    found = look(model).profile("mine")
    assert torch.equal(forward(model, prompt(0)), before)
    assert (found.dims, found.tau, found.band, found.first_layer) == (DIMS, TAU, (2, 5), 2)
    stats = found.stats
    assert (stats["origin"], stats["band_by"], stats["layers"], stats["texts"]) == (
        "first token", "activations", [2, 3, 4], 8)  # fmt: skip
    assert stats["values"]["3"] == pytest.approx(32**0.5, abs=0.01)  # two dimensions share all of the norm
    assert stats["halves"] == [[3, 17], [3, 17]]
    assert stats["warnings"] == []
    assert min(stats["attention_ratio"].values()) > 5
    assert found.samples == 8
    assert SinkProfile.from_dict(json.loads(json.dumps(found.to_dict()))) == found


def test_what_is_seen_of_a_layer():
    """Peak, median and received attention against the dense model's own hidden states and attention."""
    model, batch = planted(), prompt(0)
    collector = SinkCollector(model)
    collector.add(batch())
    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")
    with torch.no_grad():
        out = eager(**batch(), output_hidden_states=True, output_attentions=True)
    question = (torch.arange(29) > 21) & batch.real[0]
    for layer, hidden, attention in zip(collector.images[0], out.hidden_states, out.attentions, strict=False):
        size = hidden[0].abs()
        assert [layer.peak, layer.middle] == pytest.approx([float(size.max()), float(size.median())], rel=1e-5)
        received = attention[0][:, question][..., batch.visual[0]].mean((0, 1))
        assert layer.received == pytest.approx(float(received.sum()), abs=1e-5)
        if layer.layer in (2, 3, 4):
            (sink,) = [token for token in layer.standing if 3 in token[0] and 17 in token[0]]
            assert sink[1] == pytest.approx(float(received[SINK - 6]), abs=1e-5)
            assert sink[2] == pytest.approx(1, abs=1e-3)
            assert {c for c, _ in layer.first[:2]} == set(DIMS)
            assert layer.attended[0][0] in DIMS
    assert len(collector.asked) == 1
    assert collector.asked[0] == batch.ids[0][~batch.visual[0]].tolist()


def test_visual_sinks_in_dimensions_of_their_own():
    """The first token's dimensions flag no visual token, so those of the most attended ones are taken."""
    found = look(planted(Plan({0: DIMS, SINK: (9, 21)}))).profile("mine")
    assert (found.dims, found.stats["origin"], found.band) == ((9, 21), "most attended visual token", (2, 5))
    assert any("little like the first token" in doubt for doubt in found.stats["warnings"])


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (lambda: copy.deepcopy(FAMILY.build("sdpa")), "no massive activations"),
        (lambda: planted(Plan({0: DIMS})), "are not sinks"),  # the first token alone
        (lambda: planted(pull=0.0), "are not sinks"),  # nobody attends to the token that stands out
        (lambda: planted(Plan({0: DIMS, **dict.fromkeys(range(6, 14), DIMS)})), "are not sinks"),  # half the image
    ],
)
def test_a_model_without_sinks(model, reason):
    found = look(model()).profile("mine")
    assert (found.dims, found.band, found.first_layer) == ((), (), None)
    assert reason in found.nothing
    assert SinkProfile.from_dict(json.loads(json.dumps(found.to_dict()))) == found


def test_halves_that_disagree_are_a_warning():
    plan = Plan()
    model = planted(Plan({0: (3, 17, 9, 21)}))
    for layer in model.model.language_model.layers:
        layer.mlp.plan = plan
    collector = SinkCollector(model)
    for seed in range(4):
        plan.tokens = dict.fromkeys((0, SINK), DIMS if half(seed) else (9, 21))
        collector.add(prompt(seed)())
    found = collector.profile("mine")
    assert found.stats["halves"] == [[9, 21], [3, 17]]
    few, differ = found.stats["warnings"]
    assert "4 images are few" in few
    assert "[9, 21] and [3, 17]" in differ


def test_candidates_are_cut_at_the_largest_gap():
    def ranked(*values: float) -> dict[int, float]:
        return candidates([list(enumerate(values))], 20.0)

    assert list(ranked(60, 55, 4, 3)) == [0, 1]
    assert list(ranked(60, 22, 21, 19)) == [0]
    assert list(ranked(40, 38, 36, 10)) == [0, 1, 2]
    assert ranked(19, 18) == {}
    assert len(ranked(*[25.0] * 9, 1.0)) == 1  # six at most, and no gap among them
    assert candidates([[(0, 50.0)], [(0, 50.0)], [(1, 60.0)]], 20.0) == {0: 50.0}  # the median over tokens
    assert candidates([], 20.0) == {}


def test_halves_hold_prompts_of_every_kind():
    """Also where kinds of prompts come in turn, as scenes and screens do."""
    assert sum(half(number) for number in range(16)) == 8
    for period in (2, 3, 4, 5, 6):
        for kind in range(period):
            halves = [half(number) for number in range(kind, 200, period)]
            assert 0.35 < sum(halves) / len(halves) < 0.65


def test_state_goes_through_json():
    collector = look(planted(), 2)
    again = SinkCollector(collector.model, json.loads(json.dumps(collector.state())))
    assert again.profile("mine").to_dict() == collector.profile("mine").to_dict()
    assert isinstance(again.images[0][0], Layer)


# ---------------------------------------------------------------- heads
def test_head_tables_are_those_of_full_attention_matrices():
    model = planted()
    structure = structure_of(model)
    sums = HeadSums(6, 4, list(range(6)), DIMS, TAU)
    collector = Collector(model, [FastV(keep_ratio=0.5, layer=2)], heads=sums)
    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")
    expected = {name: torch.zeros(6, 4) for name in ("visual_mass", "nonsink_mass", "sharpness", "divergence")}
    seeds = range(3)
    for seed in seeds:
        batch = prompt(seed)
        collector.add(batch())
        without, with_image = text_only_heads(model, batch, 0), last_heads(model, batch)
        with torch.no_grad():
            out = eager(**batch(), output_hidden_states=True, output_attentions=True)
        for layer in range(6):
            x = out.hidden_states[layer][0]
            phi = x[:, list(DIMS)].abs().amax(-1) / (x.square().mean(-1) + 1e-6).sqrt()
            rows, image = out.attentions[layer][0][:, 22:], batch.visual[0]
            rest = rows[..., image & (phi < TAU)].double()
            share = rest / rest.sum(-1, keepdim=True)
            entropy = -(share * share.clamp_min(1e-38).log()).sum(-1)
            expected["visual_mass"][layer] += rows[..., image].sum(-1).mean(-1)
            expected["nonsink_mass"][layer] += rest.sum(-1).mean(-1)
            expected["sharpness"][layer] += (1 - entropy / torch.tensor(rest.shape[-1]).log()).mean(-1)
            expected["divergence"][layer] += (with_image[layer] - without[layer]).norm(dim=-1)
    found = sums.profile(model_facts(model, structure))
    for name in ("visual_mass", "nonsink_mass", "divergence"):
        assert torch.allclose(torch.tensor(getattr(found, name)), expected[name] / len(seeds), atol=1e-4), name
    assert torch.allclose(torch.tensor(found.stats["sharpness"]), expected["sharpness"] / len(seeds), atol=1e-3)
    assert (expected["visual_mass"] - expected["nonsink_mass"])[2:5].min() > 0.1  # sinks are left out
    assert found.samples == 3
    assert (sums.tables["visual_mass"].amin((1, 2)) > 0).all()  # both halves
    assert collector.sums["fastv:2"].samples == 3  # in the same passes
    assert HeadProfile.from_dict(json.loads(json.dumps(found.to_dict()))) == found


def last_heads(model: Any, batch: Any) -> dict[int, torch.Tensor]:
    """Head outputs [H, D] of the last row, by layer."""
    found: dict[int, torch.Tensor] = {}
    handles = [
        layer.self_attn.o_proj.register_forward_pre_hook(
            lambda module, args, i=i: found.update({i: args[0][0, -1].view(4, -1).clone()})
        )
        for i, layer in enumerate(model.model.language_model.layers)
    ]
    forward(model, batch)
    for handle in handles:
        handle.remove()
    return found


def test_halves_that_select_other_heads_are_a_warning():
    sums = HeadSums(2, 8, [0, 1])
    rising = torch.arange(8.0).expand(2, 8) / 10
    for name in ("visual_mass", "nonsink_mass", "divergence"):
        sums.tables[name] = torch.stack([rising, rising]).double()
    sums.tables["divergence"][1] = rising.flip(1)
    sums.samples = 10
    facts = {"layers": 2, "num_heads": 8}
    found = sums.profile(facts)
    assert found.stats["agreement"] == {"visual_mass": 1.0, "nonsink_mass": 1.0, "divergence": 0.0}
    assert found.stats["warnings"] == [
        "two halves of the images select other heads by divergence: Jaccard index 0.00 < 0.7"
    ]
    again = HeadSums(2, 8, [0, 1])
    again.load(json.loads(json.dumps(sums.state())))
    assert again.profile(facts) == found


def test_sharpness_and_rank_correlation():
    weights = torch.tensor([[[0.25] * 4, [1.0, 0, 0, 0], [0.5, 0.5, 0, 0], [0.0] * 4]])
    count = torch.tensor([[4, 4, 4, 4]])
    assert torch.allclose(sharpness(weights, weights.sum(-1), count), torch.tensor([[0.0, 1.0, 0.5, 0.0]]))
    values = torch.tensor([3.0, 1.0, 2.0, 7.0])
    assert rank_correlation(values, values.exp()) == pytest.approx(1)
    assert rank_correlation(values, -values) == pytest.approx(-1)
    assert rank_correlation(values, torch.ones(4)) is None

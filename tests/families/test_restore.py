"""`restore` gives the model back: the same bits, and not one attribute, hook or class of ours."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch

import vlmopt
from tests.support.families import FAMILIES, GREEDY, Image
from tests.support.mechanism import Case, DropByOrdinal, forward, generate
from tests.support.selectors import SETTINGS
from tests.support.snapshot import differences, snapshot
from vlmopt import pruning

every_family = pytest.mark.parametrize("family", [pytest.param(f, id=f.name) for f in FAMILIES.values()])


def probing(family, positions: str = "keep") -> vlmopt.Policy:
    """Cuts, markers and a row probe, so that every touch point is installed (a hybrid's layer 1 has attention)."""
    return vlmopt.Policy(
        prune=[DropByOrdinal(keep_ratio=0.7, positions=positions), pruning.FastV(keep_ratio=0.5, layer=2)]
    )


@pytest.mark.parametrize("attn", ["eager", "sdpa"])
@every_family
def test_restore_is_exact(family, attn):
    model, batch = copy.deepcopy(family.build(attn)), Case(family, "pre", prompts="ragged").batch
    expected, before = forward(model, batch), snapshot(model)
    vlmopt.optimize(model, probing(family))
    assert differences(before, snapshot(model))
    assert not torch.equal(forward(model, batch), expected)
    generate(model, batch)
    assert vlmopt.restore(model) is model
    assert differences(before, snapshot(model)) == []
    assert torch.equal(forward(model, batch), expected)


def test_restoring_twice_or_an_untouched_model_is_harmless():
    model = copy.deepcopy(FAMILIES["llava"].build())
    before = snapshot(model)
    vlmopt.restore(vlmopt.restore(model))
    vlmopt.optimize(model, probing(FAMILIES["llava"]))
    vlmopt.restore(vlmopt.restore(model))
    assert differences(before, snapshot(model)) == []


def test_a_second_optimize_replaces_the_first():
    family = FAMILIES["qwen3_vl"]
    case, model = Case(family, "mid"), copy.deepcopy(family.build())
    before = snapshot(model)
    vlmopt.optimize(model, probing(family, "pospad"))
    assert vlmopt.optimize(model, case.policy) is model
    with case.optimized() as fresh:
        assert torch.equal(forward(model, case.batch), forward(fresh, case.batch))
    vlmopt.restore(model)
    assert differences(before, snapshot(model)) == []


def test_a_refused_second_optimize_leaves_the_first():
    case = Case(FAMILIES["qwen2_5_vl"], "mid")
    with case.optimized() as model:
        before, expected = snapshot(model), forward(model, case.batch)
        with pytest.raises(ValueError, match="layer"):
            vlmopt.optimize(model, [DropByOrdinal(keep_ratio=0.5, layer=99)])
        assert torch.equal(forward(model, case.batch), expected)
        assert differences(before, snapshot(model)) == []


def test_optimized_restores_after_an_exception():
    case = Case(FAMILIES["llava"], "progressive")
    model = case.model()
    before = snapshot(model)
    with pytest.raises(ValueError, match="input_ids"), vlmopt.optimized(model, case.policy):
        model()
    assert differences(before, snapshot(model)) == []


def test_optimized_gives_back_the_policy_that_was_there():
    outer, inner = Case(FAMILIES["llava"], "pre"), Case(FAMILIES["llava"], "mid")
    with outer.optimized() as model:
        expected = forward(model, outer.batch)
        with vlmopt.optimized(model, inner.policy):
            assert not torch.equal(forward(model, outer.batch), expected)
        assert torch.equal(forward(model, outer.batch), expected)


class Broken(Exception):
    pass


@pytest.mark.parametrize("place", ["layer", "selector", "tower", "stopping"])
def test_an_exception_inside_generate_leaves_the_model_usable(place):
    case = Case(FAMILIES["qwen2_5_vl"], "progressive", prompts="ragged")
    batch = case.batch

    def fail(*args, **kwargs):
        raise Broken

    with case.optimized() as model:
        expected = generate(model, batch)
        settings, undo = {}, None
        if place == "stopping":
            settings = {"stopping_criteria": [fail]}
        else:
            module = {
                "layer": model.model.language_model.layers[3],
                "tower": model.model.visual,
                "selector": model.model.language_model.layers[0].input_layernorm,
            }[place]
            undo = module.register_forward_pre_hook(fail)
        with pytest.raises(Broken):
            generate(model, batch, **settings)
        if undo is not None:
            undo.remove()
        text = case.family.inputs([[6]])
        assert torch.equal(generate(model, text).sequences, generate(case.family.build(), text).sequences)
        assert torch.equal(generate(model, batch).sequences, expected.sequences)
        assert all(map(torch.equal, generate(model, batch).logits, expected.logits))


@pytest.mark.parametrize("name", ["qwen3_vl", "gemma3"])
def test_deepcopy_while_optimized(name):
    case = Case(FAMILIES[name], "progressive", "pospad", "ragged")
    batch = case.batch
    with case.optimized() as model:
        expected = generate(model, batch)
        twin = copy.deepcopy(model)
        assert torch.equal(generate(twin, batch).sequences, expected.sequences)
        vlmopt.restore(twin)
        plain = generate(case.family.build(), batch)
        assert all(map(torch.equal, generate(twin, batch).logits, plain.logits))
        assert all(map(torch.equal, generate(model, batch).logits, expected.logits))
        other = copy.deepcopy(model)
    assert all(map(torch.equal, generate(other, batch).logits, expected.logits))


@pytest.mark.parametrize("name", ["qwen2_5_vl", "llava"])
def test_saved_while_optimized_reloads_as_the_plain_model(name, tmp_path):
    family = FAMILIES[name]
    plain, batch = family.build(), Case(family, "pre").batch
    plain.save_pretrained(tmp_path / "plain")
    with vlmopt.optimized(copy.deepcopy(plain), probing(family)) as model:
        model.save_pretrained(tmp_path / "optimized")
    names = ("config.json", "generation_config.json")
    assert all((tmp_path / "plain" / n).read_text() == (tmp_path / "optimized" / n).read_text() for n in names)
    again = family.model_class.from_pretrained(tmp_path / "optimized", attn_implementation="sdpa").eval()
    assert torch.equal(forward(again, batch), forward(plain, batch))
    assert torch.equal(
        again.generate(**batch(), max_new_tokens=3, **GREEDY), plain.generate(**batch(), max_new_tokens=3, **GREEDY)
    )


def test_nothing_keeps_a_restored_model_alive():
    case = Case(FAMILIES["llava"], "progressive")
    model = vlmopt.optimize(case.model(), case.policy)
    generate(model, case.batch)
    vlmopt.restore(model)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


@pytest.mark.usefixtures("untrained_scorer")
@pytest.mark.parametrize("method", SETTINGS.values(), ids=SETTINGS)
def test_every_method_leaves_nothing_behind(method):
    """Hooks on projector, tower, feed-forward blocks and attention modules included; also after a failed forward."""
    family = FAMILIES["qwen2_5_vl"]
    model, batch = copy.deepcopy(family.build()), family.inputs([[5, Image(0), 7]])
    forward(model, batch)
    before = snapshot(model)
    vlmopt.optimize(model, method)
    assert differences(before, snapshot(model))
    forward(model, batch)
    with pytest.raises((RuntimeError, ValueError)):
        model(**{**batch(), "pixel_values": torch.zeros(3, 5)})
    vlmopt.restore(model)
    assert differences(before, snapshot(model)) == []

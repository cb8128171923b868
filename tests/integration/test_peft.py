"""PEFT wrappers are put around a model and taken off again, before and after it is optimized."""

from __future__ import annotations

import copy
import operator

import pytest
import torch

import vlmopt
from tests.support.families import FAMILIES, Image
from tests.support.mechanism import forward, gap, generate
from tests.support.snapshot import differences, snapshot
from vlmopt import pruning
from vlmopt.api import session_of

peft = pytest.importorskip("peft", reason="peft is not installed")

LLAVA = FAMILIES["llava"]
POLICY = [pruning.ZeroOrder(keep_ratio=0.7), pruning.FastV(keep_ratio=0.5, layer=2)]
LORA = peft.LoraConfig(target_modules=["q_proj", "v_proj", "down_proj", "linear_1"], r=4, init_lora_weights=False)


def prompt():
    return LLAVA.inputs([[5, Image(0), 7]])


def plain():
    return copy.deepcopy(LLAVA.build())


def adapted(model=None, config=LORA):
    model = plain() if model is None else model
    torch.manual_seed(0)
    return peft.get_peft_model(model, config).eval()


ENDS = {name: operator.methodcaller(name) for name in ("merge_and_unload", "unload")}


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
@pytest.mark.parametrize("first", ["optimize", "wrap"])
def test_adapters_come_and_go(first, end):
    """Optimized before or after it was wrapped; then merged, unmerged, taken off."""
    model = adapted(vlmopt.optimize(plain(), POLICY)) if first == "optimize" else vlmopt.optimize(adapted(), POLICY)
    reference = vlmopt.optimize(adapted(), POLICY)
    batch, expected = prompt(), generate(reference, prompt())
    assert all(map(torch.equal, generate(model, batch).logits, expected.logits))
    assert vlmopt.report(model).key_lengths == vlmopt.report(reference).key_lengths
    assert vlmopt.report(model).new_tokens == 4
    model.merge_adapter()
    merged = torch.stack(generate(model, batch).logits)
    assert gap(merged, torch.stack(expected.logits)) < 1e-4
    model.unmerge_adapter()
    base = end(model)
    fresh = vlmopt.optimize(end(adapted()), POLICY)
    assert gap(torch.stack(generate(base, batch).logits), torch.stack(generate(fresh, batch).logits)) < 1e-4
    assert vlmopt.report(base).key_lengths == vlmopt.report(fresh).key_lengths
    assert vlmopt.report(base).new_tokens == 4
    vlmopt.restore(base)
    vlmopt.restore(fresh)
    assert session_of(base) is None
    assert gap(forward(base, batch), forward(fresh, batch)) < 1e-4


@pytest.mark.parametrize("given", ["wrapper", "base", "outer"])
def test_restore_is_exact_from_the_wrapper_and_from_below(given):
    model = adapted()
    forward(model, prompt())
    before, expected = snapshot(model), forward(model, prompt())
    vlmopt.optimize(model, POLICY)
    generate(model, prompt())
    base = model.get_base_model()
    vlmopt.restore({"wrapper": model, "base": base, "outer": base.model}[given])
    assert differences(before, snapshot(model)) == []
    assert torch.equal(forward(model, prompt()), expected)


@pytest.mark.parametrize("first", ["wrapper", "base"])
def test_one_session_per_decoder(first):
    """A second `optimize`, by whichever handle, replaces the first."""
    model = adapted()
    forward(model, prompt())
    before = snapshot(model)
    handles = [model, model.get_base_model()]
    one, other = handles if first == "wrapper" else handles[::-1]
    vlmopt.optimize(one, [pruning.Uniform(keep_ratio=0.5)])
    vlmopt.optimize(other, POLICY)
    out, expected = generate(model, prompt()), generate(vlmopt.optimize(adapted(), POLICY), prompt())
    assert all(map(torch.equal, out.logits, expected.logits))
    assert vlmopt.report(one).key_lengths == vlmopt.report(other).key_lengths
    vlmopt.restore(one)
    assert differences(before, snapshot(model)) == []


def test_a_merge_between_two_calls_is_seen_by_what_was_derived_from_weights():
    """Merging writes into weights without a trace that autograd keeps; ZeroOrder folds the projector's."""
    policy = [pruning.ZeroOrder(keep_ratio=0.4, combine="sensitivity")]
    config = peft.LoraConfig(target_modules=["linear_1", "linear_2"], r=8, init_lora_weights=False)
    model = vlmopt.optimize(plain(), policy)
    forward(model, prompt())
    first = vlmopt.report(model).maps()[0].scores
    model = adapted(model, config).merge_and_unload()
    forward(model, prompt())
    second = vlmopt.report(model).maps()[0].scores
    assert not torch.equal(first, second)
    vlmopt.optimize(model, policy)
    forward(model, prompt())
    assert torch.equal(vlmopt.report(model).maps()[0].scores, second)


@pytest.mark.parametrize("first", ["optimize", "wrap"])
def test_modules_that_peft_copies(first):
    """`modules_to_save` deep-copies a part: it stays with its model's session, and is cleared by `restore`."""
    config = peft.LoraConfig(
        target_modules=["q_proj"], modules_to_save=["multi_modal_projector"], r=4, init_lora_weights=False
    )
    if first == "optimize":
        model = adapted(vlmopt.optimize(plain(), POLICY), config)
    else:
        model = vlmopt.optimize(adapted(config=config), POLICY)
    dense = adapted(config=config)
    sessions = {id(h.session) for m in model.modules() for h in m._forward_hooks.values() if hasattr(h, "session")}
    assert len(sessions) == 1
    generate(model, prompt())
    assert [line["method"] for line in vlmopt.report(model).applied] == ["zeroth_order", "fastv"]
    vlmopt.restore(model)
    assert session_of(model) is None
    assert not [h for m in model.modules() for h in m._forward_hooks.values() if hasattr(h, "session")]
    assert torch.equal(forward(model, prompt()), forward(dense, prompt()))


FEED = ["gate_proj", "up_proj", "down_proj"]
OTHER_KINDS = {  # these scale or turn what enters the linear map that they wrap, or go around it
    "lora": LORA,
    "ia3": peft.IA3Config(target_modules=FEED, feedforward_modules=FEED[2:], init_ia3_weights=False),
    "oft": peft.OFTConfig(target_modules=FEED, oft_block_size=4, init_weights=False),
    "hra": peft.HRAConfig(target_modules=FEED, r=4, init_weights=False),
}


@pytest.mark.parametrize("first", ["optimize", "wrap"])
@pytest.mark.parametrize("config", OTHER_KINDS.values(), ids=OTHER_KINDS)
def test_neurons_are_counted_behind_adapters(config, first):
    policy, unequal = [pruning.CoreMatching(layer=2)], torch.Generator().manual_seed(0)

    def tuned(model=None):
        model = adapted(model, copy.deepcopy(config))
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += 0.1 * torch.randn(parameter.shape, generator=unequal.manual_seed(0))
        return model

    model = tuned(vlmopt.optimize(plain(), policy)) if first == "optimize" else vlmopt.optimize(tuned(), policy)
    expected = vlmopt.optimize(tuned().merge_and_unload(), policy)
    logits = forward(expected, prompt())
    assert gap(forward(model, prompt()), logits) < 1e-3
    assert vlmopt.report(model).key_lengths == vlmopt.report(expected).key_lengths
    base = model.merge_and_unload()
    assert gap(forward(base, prompt()), logits) < 1e-3
    vlmopt.restore(base)
    assert not [h for m in base.modules() for h in m._forward_pre_hooks.values() if hasattr(h, "session")]

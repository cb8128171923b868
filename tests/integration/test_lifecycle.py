"""An optimized model is copied, pickled, sent to another process, interrupted, and given back."""

from __future__ import annotations

import copy
import gc
import io
import multiprocessing
import pickle
import weakref

import pytest
import torch

import vlmopt
from tests.support import corrections
from tests.support.families import FAMILIES, GREEDY, Image
from tests.support.mechanism import forward, generate
from tests.support.selectors import SETTINGS, works_on
from tests.support.snapshot import differences, snapshot
from vlmopt import attention_fix, kv, pruning
from vlmopt.api import session_of
from vlmopt.families import families
from vlmopt.kernels import patterns
from vlmopt.prefill import SparsePrefill
from vlmopt.reading import SparseReading
from vlmopt.runtime.call import CALL, STEP
from vlmopt.runtime.captures import projector

LLAVA = FAMILIES["llava"]
POLICY = vlmopt.Policy(
    prune=[
        pruning.VisionZip(keep_ratio=0.5, tower_layer=-1),
        pruning.FastV(keep_ratio=0.5, layer=2),
    ],
    attention=[attention_fix.ImageBoost(layers="1:")],
)


def prompt(family=LLAVA):
    return family.inputs([[5, Image(0), 7]])


def sent(model):
    """Through a file and back. The model has not run yet: transformers' own hooks of a first run do not pickle."""
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


WAYS = {"pickle": lambda model: pickle.loads(pickle.dumps(model)), "torch.save": sent, "deepcopy": copy.deepcopy}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("name", ["llava", "qwen3_vl", "qwen2_5_vl"])
def test_a_copy_is_optimized_and_on_its_own(name, way):
    family = FAMILIES[name]
    model = vlmopt.optimize(family.fresh(), POLICY)
    twin = way(model)
    batch = prompt(family)
    expected = generate(model, batch)
    out = generate(twin, batch)
    assert all(map(torch.equal, out.logits, expected.logits))
    assert vlmopt.report(twin).key_lengths == vlmopt.report(model).key_lengths
    vlmopt.restore(model)
    assert all(map(torch.equal, generate(twin, batch).logits, expected.logits))
    plain = generate(model, batch)
    assert not all(map(torch.equal, plain.logits, expected.logits))
    vlmopt.restore(twin)
    assert session_of(twin) is None
    assert all(map(torch.equal, generate(twin, batch).logits, plain.logits))


def test_a_copy_has_nothing_to_report_before_it_runs():
    model = vlmopt.optimize(LLAVA.fresh(), POLICY)
    forward(model, prompt())
    with pytest.raises(ValueError, match="nothing to report"):
        vlmopt.report(copy.deepcopy(model))


METHODS = {name: method for name, method in SETTINGS.items() if name.endswith("hard")}
METHODS |= {
    name: corrections.made(name, FAMILIES["qwen3_vl"]) for name in corrections.SETTINGS if name.endswith("hard")
}


@pytest.mark.usefixtures("untrained_scorer")
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_every_method_pickles(method):
    family = FAMILIES["qwen3_vl"]
    if isinstance(method, pruning.Selector) and not works_on(families()["qwen3_vl"], method):
        pytest.skip("refused on this family")
    model = vlmopt.optimize(family.fresh(), method)
    twin = pickle.loads(pickle.dumps(model))
    assert torch.equal(forward(twin, prompt(family)), forward(model, prompt(family)))


def test_its_generate_alone_pickles():
    """As `pool.apply(model.generate)` does."""
    model = vlmopt.optimize(LLAVA.fresh(), POLICY)
    again = pickle.loads(pickle.dumps(model.generate))
    settings = {**prompt()(), "max_new_tokens": 3, **GREEDY}
    assert torch.equal(again(**settings), model.generate(**settings))


def answer_in_child(model, inputs, pipe):
    torch.set_num_threads(1)
    pipe.send((model(**inputs).logits.detach().numpy(), vlmopt.report(model).key_lengths))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_in_another_process(method):
    family = FAMILIES["qwen3_vl"]  # an unwrapped LLaVA of transformers 5 fails in a process that never made one
    model, batch = vlmopt.optimize(family.fresh(), POLICY), prompt(family)
    context = multiprocessing.get_context(method)
    ours, theirs = context.Pipe()
    child = context.Process(target=answer_in_child, args=(model, batch(), theirs))
    child.start()
    theirs.close()
    logits, lengths = ours.recv()
    child.join()
    expected = forward(model, batch)
    assert lengths == vlmopt.report(model).key_lengths
    assert torch.allclose(torch.from_numpy(logits), expected, atol=1e-6)


PLACES = {
    "tower": lambda m: m.model.vision_tower,
    "projector": lambda m: m.model.multi_modal_projector,
    "decoder": lambda m: m.model.language_model.norm,
    "layer": lambda m: m.model.language_model.layers[3],
    "attention": lambda m: m.model.language_model.layers[1].self_attn.o_proj,
}


@pytest.mark.parametrize("place", ["visual.blocks.1", "language_model.layers.2.mlp"])
def test_features_asked_for_after_an_interrupted_forward_are_the_models_own(place):
    """A forward that Ctrl-C ended is over: nothing is resized outside of a call."""
    family = FAMILIES["qwen2_5_vl"]
    model, batch = copy.deepcopy(family.build()), prompt(family)
    pixels = batch.inputs["pixel_values"], batch.inputs["image_grid_thw"]

    def features():
        out = model.model.get_image_features(*pixels)
        return torch.cat(tuple(getattr(out, "pooler_output", out)))

    def stop(*args):
        raise KeyboardInterrupt

    expected = features()
    vlmopt.optimize(model, pruning.Resize(keep_ratio=0.3))
    hook = model.model.get_submodule(place).register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        forward(model, batch)
    hook.remove()
    assert torch.equal(features(), expected)
    vlmopt.restore(model)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, RuntimeError])
@pytest.mark.parametrize("run", [generate, forward], ids=["generate", "forward"])
@pytest.mark.parametrize("place", PLACES)
def test_an_interrupted_call_leaves_nothing(place, run, error):
    """For Ctrl-C and `sys.exit`, torch calls no hook."""
    model = LLAVA.fresh()
    forward(model, prompt())
    before = snapshot(model)
    vlmopt.optimize(model, POLICY)
    expected = run(model, prompt())

    def stop(*args, **kwargs):
        raise error

    hook = PLACES[place](model).register_forward_pre_hook(stop)
    with pytest.raises(error):
        run(model, prompt())
    hook.remove()
    with pytest.raises(ValueError, match="did not finish"):
        vlmopt.report(model)
    assert CALL.get() is None
    assert STEP.get() is None
    if run is generate:
        assert all(map(torch.equal, run(model, prompt()).logits, expected.logits))
    else:
        assert torch.equal(run(model, prompt()), expected)
    assert vlmopt.report(model).applied
    hook = PLACES[place](model).register_forward_pre_hook(stop)
    with pytest.raises(error):
        run(model, prompt())
    hook.remove()
    vlmopt.restore(model)
    assert CALL.get() is None
    assert STEP.get() is None
    assert differences(before, snapshot(model)) == []
    gone = weakref.ref(model)
    del model, hook, before, expected
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("run", [generate, forward], ids=["generate", "forward"])
@pytest.mark.parametrize("place", PLACES)
def test_an_interrupted_model_is_freed_without_restore(place, run):
    model = vlmopt.optimize(LLAVA.fresh(), POLICY)

    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    PLACES[place](model).register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        run(model, prompt())
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_what_is_known_of_the_projector_is_whole_or_not_there(monkeypatch):
    """Ctrl-C while it is taken apart: the next call does so again."""
    model = vlmopt.optimize(LLAVA.fresh(), pruning.ZeroOrder(keep_ratio=0.5, estimator="closed_form"))

    def stop(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(projector, "two_layers", stop)
        with pytest.raises(KeyboardInterrupt):
            forward(model, prompt())
    assert forward(model, prompt()).isfinite().all()
    assert vlmopt.report(model).samples[0]["visual_tokens_kept"] == 8


METHODS_OF_OTHER_KINDS = {
    **{name: method(keep_ratio=0.4, recent=2) for name, method in kv.registry.items()},
    **{name: SparsePrefill(pattern=pattern(), min_len=1, max_work=1e9) for name, pattern in patterns.registry.items()},
    "sparse reading": SparseReading(keep_ratio=0.2, least=4, min_keys=1),
}


@pytest.mark.parametrize("method", METHODS_OF_OTHER_KINDS.values(), ids=METHODS_OF_OTHER_KINDS)
def test_every_eviction_and_pattern_pickles(method):
    family = FAMILIES["qwen3_vl"]
    model = vlmopt.optimize(family.fresh(), method)
    twin = pickle.loads(pickle.dumps(model))
    assert all(map(torch.equal, generate(twin, prompt(family)).logits, generate(model, prompt(family)).logits))
    assert vlmopt.report(twin).key_lengths == vlmopt.report(model).key_lengths
    assert vlmopt.report(model).applied_lines() or session_of(model).policy.sparse is None


def test_a_forward_inside_another_models_generate_gives_the_call_back():
    first, second = (vlmopt.optimize(LLAVA.fresh(), POLICY) for _ in range(2))
    generate(first, prompt())
    alone = vlmopt.report(first)

    def peek(ids, scores, **kwargs):
        second(**prompt()())
        return torch.zeros(len(ids), dtype=torch.bool)

    generate(first, prompt(), stopping_criteria=[peek])
    nested = vlmopt.report(first)
    assert nested.decode_tokens_per_s is not None
    assert (nested.samples, nested.key_lengths) == (alone.samples, alone.key_lengths)
    assert vlmopt.report(second).new_tokens == 0


@pytest.mark.parametrize("part", ["model", "model.language_model", "model.language_model.layers"])
def test_restore_from_any_part(part):
    model = LLAVA.fresh()
    forward(model, prompt())
    before = snapshot(model)
    vlmopt.optimize(model, [pruning.FastV(keep_ratio=0.5, layer=2)])
    vlmopt.restore(model.get_submodule(part))
    assert differences(before, snapshot(model)) == []


@pytest.mark.slow
@pytest.mark.parametrize("order", ["optimize, compile", "compile, optimize", "optimize the compiled"])
def test_torch_compile(order):
    """Graphs break at the hooks; what comes out is what comes out without compiling, restored too."""
    policy = [pruning.FastV(keep_ratio=0.5, layer=2), attention_fix.ImageBoost(layers="1:")]
    plain, model = (LLAVA.fresh() for _ in range(2))
    dense = forward(plain, prompt())
    expected = forward(vlmopt.optimize(plain, policy), prompt())
    if order == "optimize, compile":
        vlmopt.optimize(model, policy)
    compiled = torch.compile(model, backend="eager")
    if order != "optimize, compile":
        vlmopt.optimize(model if order == "compile, optimize" else compiled, policy)
    assert torch.equal(forward(compiled, prompt()), expected)
    assert vlmopt.report(compiled).key_lengths == vlmopt.report(plain).key_lengths
    vlmopt.restore(compiled)
    assert torch.equal(forward(compiled, prompt()), dense)

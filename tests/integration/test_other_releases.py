"""A release of transformers that names things otherwise is refused; it never answers as if there were no image."""

from __future__ import annotations

import copy
import functools
import inspect
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import vlmopt
from tests.support.families import FAMILIES, GREEDY, Image
from tests.support.mechanism import DropByOrdinal
from tests.support.snapshot import differences, snapshot
from vlmopt import pruning
from vlmopt.pruning import FastV
from vlmopt.runtime import cache_kinds, compat
from vlmopt.runtime.hooks.attention import vlmopt_attention
from vlmopt.runtime.structure import structure_of

ROOT = Path(__file__).parents[2]
NAMED = f"transformers {transformers.__version__}: "
CUT = [DropByOrdinal(layer=2, keep_ratio=0.5)]


def model_and_batch(name: str) -> tuple[Any, Any]:
    return copy.deepcopy(FAMILIES[name].build()), FAMILIES[name].inputs([[4, Image(), 5]])


def rename(module: Any, old: str, new: str, *, told: bool) -> None:
    """`module` as on a release whose callers hand over `old` as `new`; `told` says whether its signature shows it."""
    cls = type(module)
    parameters = inspect.signature(cls.forward).parameters
    names = [new if name == old else name for name in parameters]

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if new in kwargs:
            kwargs[old] = kwargs.pop(new)
        return cls.forward(self, *args, **kwargs)

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if old in kwargs:
            kwargs[new] = kwargs.pop(old)
        return cls.__call__(self, *args, **kwargs)

    forward.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [p.replace(name=name if told else p.name) for name, p in zip(names, parameters.values(), strict=True)]
    )
    module.__class__ = type(cls.__name__, (cls,), {"forward": forward, "__call__": call, "__module__": cls.__module__})


def cache_of(module: Any) -> str:
    return compat.cache_name(type(module).forward)


def part(model: Any, name: str) -> list[Any]:
    found = structure_of(model)
    return {"outer": [found.outer], "decoder": [found.decoder], "layer": found.layers}[name]


RENAMED = [
    ("layer", "cache", "kv"),
    ("layer", "hidden_states", "hidden"),
    ("layer", "attention_mask", "mask"),
    ("layer", "position_embeddings", "rope"),
    ("decoder", "cache", "kv"),
    ("decoder", "inputs_embeds", "embeds"),
    ("decoder", "attention_mask", "mask"),
    ("decoder", "position_ids", "positions"),
    ("outer", "pixel_values", "pictures"),
    ("outer", "input_ids", "tokens"),
    ("outer", "cache", "kv"),
]


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
@pytest.mark.parametrize(("where", "old", "new"), RENAMED)
def test_a_renamed_argument_is_refused_before_anything_is_changed(name, where, old, new):
    model, _ = model_and_batch(name)
    for module in part(model, where):
        rename(module, cache_of(module) if old == "cache" else old, new, told=True)
    before = snapshot(model)
    with pytest.raises(RuntimeError, match=re.escape(NAMED)) as caught:
        vlmopt.optimize(model, CUT)
    assert type(part(model, where)[0]).__name__ in str(caught.value)
    assert new in str(caught.value)
    assert differences(before, snapshot(model)) == []


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
@pytest.mark.parametrize(
    ("where", "old", "new"),
    [
        row
        for row in RENAMED
        if row[1] != "hidden_states" and row[:2] not in (("outer", "cache"), ("outer", "input_ids"))
    ],
)
def test_an_argument_that_callers_rename_is_refused_at_the_first_step(name, where, old, new):
    model, batch = model_and_batch(name)
    for module in part(model, where):
        rename(module, cache_of(module) if old == "cache" else old, new, told=False)
        if old == "pixel_values":
            rename(module, "mm_encoder_outputs", f"{new}_encoded", told=False)
    vlmopt.optimize(model, CUT)
    for run in (model, functools.partial(model.generate, max_new_tokens=2, **GREEDY)):
        with pytest.raises(RuntimeError, match=re.escape(NAMED)) as caught, torch.no_grad():
            run(**batch())
        assert new in str(caught.value)


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize(("old", "new"), [("cu_seqlens", "segments"), ("position_embeddings", "rope")])
def test_a_renamed_argument_of_a_block_of_the_tower_is_refused(old, new, told):
    model, batch = model_and_batch("qwen2_5_vl")
    for block in model.model.visual.blocks:
        rename(block, old, new, told=told)
    vlmopt.optimize(model, pruning.PixelRedundancy(keep_ratio=0.5, tolerance=0.5))
    with pytest.raises(RuntimeError, match=f"{re.escape(NAMED)}Qwen2_5_VLVisionBlock has no argument {old}"):
        model(**batch())


@pytest.mark.skipif(FAMILIES["qwen3_vl"].model_class is None, reason="family not in this release")
@pytest.mark.parametrize(
    ("old", "new"), [("visual_pos_masks", "visual_masks"), ("deepstack_visual_embeds", "deep_features")]
)
def test_a_first_pass_without_features_of_deepstack_is_refused(old, new):
    model, batch = model_and_batch("qwen3_vl")
    rename(structure_of(model).decoder, old, new, told=False)
    vlmopt.optimize(model, pruning.FirstPass(keep_ratio=0.5))
    with pytest.raises(RuntimeError, match=f"{re.escape(NAMED)}Qwen3VLTextModel has no argument {old}"):
        model(**batch())


def test_a_cache_that_counts_its_keys_otherwise_is_refused():
    cache = SimpleNamespace(layers=[SimpleNamespace(keys=torch.zeros(1, 2, 3, 4)), SimpleNamespace(states=None)])
    with pytest.raises(RuntimeError, match=f"{re.escape(NAMED)}SimpleNamespace of a cache holds keys"):
        cache_kinds.physical_past(cache, 0)
    assert cache_kinds.physical_past(cache, 1) == 0  # recurrent
    assert cache_kinds.physical_past(cache, 2) == 0  # not run yet


@pytest.mark.parametrize(("old", "new"), [("attention_mask", "mask"), ("scaling", "scale"), ("query", "q")])
def test_a_renamed_argument_of_the_attention_function_is_refused(old, new, monkeypatch):
    def called(module: Any, *args: Any, **kwargs: Any) -> Any:
        given = dict(zip(compat.ATTENTION, args, strict=False)) | kwargs
        given[new] = given.pop(old)
        return vlmopt_attention(module, **given)

    model, batch = model_and_batch("llava")
    vlmopt.optimize(model, [FastV(layer=2, keep_ratio=0.5)])
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "vlmopt", called)
    with pytest.raises(RuntimeError, match=f"{re.escape(NAMED)}the attention function has no argument {old}"):
        model.generate(**batch(), max_new_tokens=2, **GREEDY)


def test_a_config_that_takes_its_attention_function_from_elsewhere_is_refused(monkeypatch):
    model, _ = model_and_batch("llava")
    before = snapshot(model)
    config = type(structure_of(model).config)
    elsewhere = property(lambda self: "sdpa", lambda self, value: None)
    monkeypatch.setattr(config, "_attn_implementation", elsewhere)
    with pytest.raises(RuntimeError, match=f"{re.escape(NAMED)}{config.__name__} does not take"):
        vlmopt.optimize(model, [FastV(layer=2, keep_ratio=0.5)])
    assert differences(before, snapshot(model)) == []


def test_a_decoder_that_runs_around_a_hook_is_refused(monkeypatch):
    model, batch = model_and_batch("llava")
    layer = type(structure_of(model).layers[0])
    vlmopt.optimize(model, CUT)
    monkeypatch.setattr(layer, "__call__", lambda self, *args, **kwargs: self.forward(*args, **kwargs))
    with pytest.raises(RuntimeError, match=f"{re.escape(NAMED)}.* ran around the hooks of layer 2"):
        model(**batch())


def test_images_encoded_elsewhere_are_refused():
    model, batch = model_and_batch("llava")
    outer = structure_of(model).outer
    encode = type(outer).get_image_features
    vlmopt.optimize(model, CUT)
    probe = outer.get_image_features
    outer.get_image_features = functools.partial(encode, outer)
    with pytest.raises(RuntimeError, match=f"{re.escape(NAMED)}.* encoded an image without calling get_image_features"):
        model(**batch())
    outer.get_image_features = probe
    with torch.no_grad():
        model(**batch())
    assert vlmopt.report(model).skipped == []


def around_hooks(module: Any) -> None:
    """Let callers of `module` run its forward alone, as a fused kernel or another release may."""
    cls = type(module)
    names = {"__call__": lambda self, *args, **kwargs: self.forward(*args, **kwargs), "__module__": cls.__module__}
    module.__class__ = type(cls.__name__, (cls,), names)


def without_attention(module: Any) -> None:
    """Let `module` run without the attention function that its config names."""
    object.__setattr__(module, "forward", lambda hidden_states, *args, **kwargs: (hidden_states, None))


AROUND: dict[str, tuple[Any, Any, Any, str]] = {
    "projector": (
        pruning.ZeroOrder(keep_ratio=0.5),
        around_hooks,
        lambda m: [m.model.multi_modal_projector],
        "encoded an image, and its projector was not called",
    ),
    "tower": (
        pruning.VisionZip(keep_ratio=0.5, tower_layer=-1),
        without_attention,
        lambda m: [x for x in m.model.vision_tower.modules() if hasattr(x, "q_proj")],
        "encoded an image, and its vision tower ran around the attention function",
    ),
    "feed-forward": (
        pruning.CoreMatching(layer=2),
        around_hooks,
        lambda m: [x.mlp.down_proj for x in m.model.language_model.layers],
        "layer 1 ran around the last linear map",
    ),
    "decoder": (
        pruning.Uniform(keep_ratio=0.5),
        around_hooks,
        lambda m: [m.model.language_model],
        "LlavaModel ran around the hooks of LlamaModel",
    ),
}


@pytest.mark.parametrize("place", AROUND)
def test_a_part_that_runs_around_its_hooks_is_refused(place):
    method, change, parts, message = AROUND[place]
    model, batch = model_and_batch("llava")
    vlmopt.optimize(model, method)
    for module in parts(model):
        change(module)
    with pytest.raises(RuntimeError, match=f"{re.escape(NAMED)}.*{message}"), torch.no_grad():
        model(**batch())


@pytest.mark.parametrize(
    ("name", "place", "method"),
    [
        ("llava", "multi_modal_projector", pruning.ZeroOrder(keep_ratio=0.5)),
        ("llava", "vision_tower", pruning.VisionZip(keep_ratio=0.5, tower_layer=-1)),
        ("qwen2_5_vl", "visual", pruning.PixelRedundancy()),
    ],
)
def test_a_part_that_is_kept_elsewhere_is_refused_before_anything_is_changed(name, place, method):
    model, _ = model_and_batch(name)
    outer = structure_of(model).outer
    outer.elsewhere = getattr(outer, place)
    delattr(outer, place)
    before = snapshot(model)
    with pytest.raises(RuntimeError, match=f"{re.escape(NAMED)}{type(outer).__name__} has no {place}"):
        vlmopt.optimize(model, method)
    assert differences(before, snapshot(model)) == []


def test_padding_that_is_told_elsewhere_is_refused_before_anything_is_changed(monkeypatch):
    monkeypatch.delattr(transformers.GenerationMixin, compat.MASK_OF_IDS)
    model, _ = model_and_batch("llava")
    before = snapshot(model)
    with pytest.raises(
        RuntimeError, match=f"{re.escape(NAMED)}LlavaForConditionalGeneration has no {compat.MASK_OF_IDS}"
    ):
        vlmopt.optimize(model, CUT)
    assert differences(before, snapshot(model)) == []


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_a_forward_is_pruned_by_whatever_way_it_is_reached(name):
    """Fused kernels and older releases of PEFT call `forward` past the hooks of a module."""
    model, batch = model_and_batch(name)
    labels = torch.full_like(batch.ids, -100)
    labels[0, int(batch.visual[0].nonzero()[-1, 0]) + 1] = 7  # predicted by the one token that stays
    vlmopt.optimize(model, pruning.Random(keep_tokens=1, layer=2))
    with torch.no_grad():
        expected = model(**batch(), labels=labels)
        found = [model.forward(**batch(), labels=labels)]
        around_hooks(structure_of(model).outer)
        found += [model(**batch(), labels=labels), model.forward(**batch(), labels=labels)]
        states = structure_of(model).outer.forward(**batch()).last_hidden_state
    assert int((states[0] == 0).all(-1).sum()) == int(batch.total[0]) - 1
    for out in found:
        assert torch.equal(out.logits, expected.logits)
        assert torch.equal(out.loss, expected.loss)


def test_a_head_that_goes_around_the_outer_model_is_refused(monkeypatch):
    model, batch = model_and_batch("llava")
    vlmopt.optimize(model, CUT)
    cls = type(model.model)

    def original(self: Any, *args: Any, **kwargs: Any) -> Any:
        return cls.forward(self, *args, **kwargs)

    model.model.__class__ = type(cls.__name__, (cls,), {"__call__": original})
    with pytest.raises(RuntimeError, match=f"{re.escape(NAMED)}LlavaForConditionalGeneration ran around the hooks of"):
        model(**batch())


def test_a_forward_that_was_taken_off_is_noticed():
    """As accelerate does when it removes hooks that it had put under ours."""
    model, batch = model_and_batch("llava")
    vlmopt.optimize(model, CUT)
    for module in (model, model.model):
        module.forward = type(module).forward.__get__(module)
    with pytest.raises(RuntimeError, match="forward of LlavaModel is not the one that"):
        model(**batch())


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize(
    ("name", "old"),
    [("llava", "pixel_values"), ("qwen2_5_vl", "image_grid_thw"), ("llava_next", "image_sizes")],
)
def test_a_renamed_argument_of_the_feature_function_is_refused(name, old, told):
    """Without the sizes of images, grids would be wrong or missing, and nothing would say so."""
    model, batch = model_and_batch(name)
    outer = structure_of(model).outer
    encode = type(outer).get_image_features

    def renamed(*args: Any, **kwargs: Any) -> Any:
        return encode(outer, *args, **{old if key == "new" else key: value for key, value in kwargs.items()})

    signature = inspect.signature(encode)
    parameters = [p.replace(name="new" if told and p.name == old else p.name) for p in signature.parameters.values()]
    renamed.__signature__ = signature.replace(parameters=parameters[1:])  # type: ignore[attr-defined]
    outer.get_image_features = renamed
    vlmopt.optimize(model, pruning.Uniform(keep_ratio=0.5))
    probe = outer.get_image_features

    def called(*args: Any, **kwargs: Any) -> Any:
        given = dict(zip(list(signature.parameters)[1:], args, strict=False)) | kwargs
        return probe(**{"new" if key == old else key: value for key, value in given.items()})

    outer.get_image_features = called
    says, kinds = (
        f"{re.escape(NAMED)}get_image_features has no argument {old}( or [a-z_]+)*, only",
        signature.parameters,
    )
    if not told and not any(p.kind is p.VAR_KEYWORD for p in kinds.values()):  # up to 4.57: refused by Python itself
        says = "unexpected keyword argument 'new'"
    with pytest.raises((RuntimeError, TypeError), match=says):
        model(**batch())


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_calls_without_images_stay_quiet(name):
    model, batch = model_and_batch(name)
    vlmopt.optimize(model, CUT)
    text = FAMILIES[name].inputs([[6]])
    with torch.no_grad():
        model(**text())
        said = model.generate(**text(), max_new_tokens=2, **GREEDY)
        assert "no visual tokens" in str(vlmopt.report(model))
        first = model.generate(**batch(), max_new_tokens=2, return_dict_in_generate=True, use_cache=True, **GREEDY)
        told = first.sequences
        cache = compat.cache_in(dict(first))
        turn = torch.cat([told, said[:, -3:]], 1)
        again = {"input_ids": turn, "attention_mask": torch.ones_like(turn), **FAMILIES[name].token_types(turn)}
        model.generate(**again, past_key_values=cache, max_new_tokens=2, **GREEDY)


def test_the_range_of_releases_is_told_alike_everywhere():
    project, pins = ((ROOT / name).read_text() for name in ("pyproject.toml", "constraints.txt"))
    major, minor, _ = compat.NEWEST.split(".")
    assert f'"transformers>={compat.FLOOR},<{major}.{int(minor) + 1}"' in project
    assert f"\ntransformers=={compat.NEWEST}\n" in pins


@pytest.mark.parametrize(
    ("release", "given", "made"),
    [
        ("5.0.0", {}, True),
        ("5.0.0", {"use_cache": False}, False),
        ("5.0.0", {"cache_implementation": "static"}, False),
        ("5.0.0", {"past_key_values": object()}, False),
        ("5.1.0", {}, False),
    ],
)
def test_on_5_0_alone_generate_is_asked_for_its_default_cache(monkeypatch, release, given, made):
    """There the decoder makes it, and what hangs on it would come too late."""
    monkeypatch.setattr(compat.transformers, "__version__", release)
    asked = dict(given)
    compat.ask_for_cache(model_and_batch("llava")[0], asked)
    assert asked == (given | {"cache_implementation": "dynamic"} if made else given)

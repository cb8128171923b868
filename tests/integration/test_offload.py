"""Models whose weights accelerate keeps on the host or on disk: every method works as if they were not."""

from __future__ import annotations

import copy

import accelerate
import pytest
import torch

import vlmopt
from tests.support import corrections
from tests.support.families import FAMILIES, Image
from tests.support.mechanism import forward, generate
from tests.support.selectors import SETTINGS, works_on
from vlmopt import attention_fix, pruning
from vlmopt.api import session_of
from vlmopt.families import families

QWEN = FAMILIES["qwen2_5_vl"]
METHODS = {name: m for name, m in SETTINGS.items() if works_on(families()["qwen2_5_vl"], m)}
METHODS |= {name: corrections.made(name, QWEN) for name in corrections.SETTINGS if name.endswith("hard")}


def prompt(family=QWEN):
    return family.inputs([[5, Image(0), 7]])


@pytest.mark.usefixtures("untrained_scorer")
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_every_method_on_offloaded_weights(method):
    plain = vlmopt.optimize(copy.deepcopy(QWEN.build()), method)
    model = accelerate.cpu_offload(copy.deepcopy(QWEN.build()), torch.device("cpu"))
    vlmopt.optimize(model, method)
    assert torch.equal(forward(model, prompt()), forward(plain, prompt()))
    assert vlmopt.report(model).device == "cpu"
    assert all(p.device.type == "meta" for p in model.parameters())


PLACES = {
    "disk": lambda model, folder: accelerate.disk_offload(model, str(folder), torch.device("cpu")),
    "device_map": lambda model, folder: accelerate.dispatch_model(
        model,
        {"model.visual": "disk", "model.language_model": "cpu", "lm_head": "disk"},
        main_device="cpu",
        offload_dir=str(folder),
        force_hooks=True,
    ),
}


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_weights_on_disk(place, when, tmp_path):
    """Offloaded before or after it was optimized."""
    policy = [
        pruning.ZeroOrder(keep_ratio=0.8),
        pruning.PyramidDrop(keep_ratio=0.5, layers=(1, 3)),
        attention_fix.VisionHeads(layers="0:"),
        attention_fix.ImageBoost(gamma=1.1),
    ]
    plain = vlmopt.optimize(copy.deepcopy(QWEN.build()), policy)
    expected, model = generate(plain, prompt()), copy.deepcopy(QWEN.build())
    if when == "before":
        model = vlmopt.optimize(place(model, tmp_path), policy)
    else:
        model = place(vlmopt.optimize(model, policy), tmp_path)
    out = generate(model, prompt())
    assert all(map(torch.equal, out.logits, expected.logits))
    assert vlmopt.report(model).key_lengths == vlmopt.report(plain).key_lengths
    vlmopt.restore(model)
    vlmopt.restore(plain)
    assert all(map(torch.equal, generate(model, prompt()).logits, generate(plain, prompt()).logits))


@pytest.mark.parametrize(
    "method", [pruning.PyramidDrop(keep_ratio=0.5, layers=(1, 3)), pruning.FirstPass(keep_ratio=0.5)], ids=repr
)
def test_whole_layers_are_loaded_at_once(method):
    """The hook sits on the layer then, and a look into it has to go by that hook; so it is with a layer per device."""
    plain, model = (copy.deepcopy(QWEN.build()) for _ in range(2))
    accelerate.cpu_offload(model, torch.device("cpu"), preload_module_classes=["Qwen2_5_VLDecoderLayer"])
    vlmopt.optimize(plain, method)
    vlmopt.optimize(model, method)
    assert all(map(torch.equal, generate(model, prompt()).logits, generate(plain, prompt()).logits))
    assert all(p.device.type == "meta" for p in model.model.language_model.layers.parameters())


@pytest.mark.parametrize("method", [pruning.ZeroOrder(keep_ratio=0.5), pruning.VisionZip(keep_ratio=0.5)], ids=repr)
def test_weights_that_are_nowhere_are_refused(method):
    with torch.device("meta"):
        model = QWEN.model_class(QWEN.config())
    with pytest.raises(ValueError, match=rf"{method.name}.*meta"):
        vlmopt.optimize(model, method)
    assert session_of(model) is None

"""Adapters on the projector: tokens are chosen as they are once it is merged, whatever kind it is of."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import vlmopt
from tests.support.families import FAMILIES, Image
from tests.support.mechanism import forward, gap
from tests.support.more_families import MORE
from vlmopt.families import family_of
from vlmopt.pruning import ZeroOrder
from vlmopt.runtime.structure import part, structure_of

peft = pytest.importorskip("peft", reason="peft is not installed")

KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "lora": (peft.LoraConfig, {"r": 4, "init_lora_weights": False}),
    "dora": (peft.LoraConfig, {"r": 4, "init_lora_weights": False, "use_dora": True}),
    "bias": (peft.LoraConfig, {"r": 4, "init_lora_weights": False, "lora_bias": True}),
    "ia3": (peft.IA3Config, {"init_ia3_weights": False}),
    "loha": (peft.LoHaConfig, {"r": 4, "init_weights": False}),
    "lokr": (peft.LoKrConfig, {"r": 4, "init_weights": False}),
    "oft": (peft.OFTConfig, {"oft_block_size": 4, "r": 0, "init_weights": False}),
    "boft": (peft.BOFTConfig, {"boft_block_size": 4, "init_weights": False}),
    "hra": (peft.HRAConfig, {"r": 4, "init_weights": False}),
    "vera": (peft.VeraConfig, {"r": 4, "init_weights": False}),
    "randlora": (peft.RandLoraConfig, {"r": 4, "init_weights": False}),
    "copied": (peft.LoraConfig, {"r": 4, "init_lora_weights": False}),
    "norms": (peft.LNTuningConfig, {}),
}
TWO_LAYERS = ["llava", "qwen2_5_vl", "internvl"]
GATED = "glm4v"  # no closed form
KNOWN = FAMILIES | MORE


def projector(model: Any) -> Any:
    return part(structure_of(model).outer, family_of(model.config).projector)


def adapted(name: str, kind: str, **settings: Any) -> Any:
    """A family's model with adapters on its projector, whose values are far from where training begins."""
    model = copy.deepcopy(KNOWN[name].build())
    inside = projector(model)
    prefix = next(n for n, m in model.named_modules() if m is inside)
    linears = [n for n, m in model.named_modules() if n.startswith(prefix) and isinstance(m, nn.Linear)]
    norms = [n for n, m in model.named_modules() if n.startswith(prefix) and "norm" in type(m).__name__.lower()]
    make, own = KINDS[kind]
    targets = {"copied": ["q_proj"], "norms": norms}.get(kind, linears)
    if kind == "copied":
        own = own | {"modules_to_save": [prefix]}
    if kind == "ia3":
        own = own | {"feedforward_modules": linears[-1:]}
    torch.manual_seed(0)
    tuned = peft.get_peft_model(model, make(target_modules=targets, **own, **settings)).eval()
    for number, parameter in enumerate(p for p in tuned.parameters() if p.requires_grad):
        noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
        parameter.data += 0.1 * noise
    return tuned


def chosen(model: Any, method: ZeroOrder, name: str = "llava") -> list[list[bool]]:
    batch = KNOWN[name].inputs([[5, Image(0), 7], [3, Image(1), 6]])
    with vlmopt.optimized(model, method):
        assert forward(model, batch).isfinite().all()
        report = vlmopt.report(model)
    return [m.kept.tolist() for sample in range(2) for m in report.maps(sample)]


CELLS = [(n, k) for n in TWO_LAYERS for k in KINDS if k != "norms" or n == "qwen2_5_vl"]
CELLS += [(GATED, k) for k in ("lora", "loha", "copied") if GATED in KNOWN]


@pytest.mark.parametrize(("name", "kind"), CELLS)
def test_tokens_are_those_of_the_merged_model(name: str, kind: str) -> None:
    model = adapted(name, kind)
    batch = KNOWN[name].inputs([[5, Image(0), 7]])
    before, weights = forward(model, batch), {n: p.clone() for n, p in model.named_parameters()}
    methods = [ZeroOrder(keep_ratio=0.5, combine="sensitivity"), ZeroOrder(keep_ratio=0.5, estimator="jvp")]
    ours = [chosen(model, method, name) for method in methods]
    assert torch.equal(forward(model, batch), before)
    assert all(torch.equal(p, weights[n]) for n, p in model.named_parameters())
    merged = model.merge_and_unload()
    assert gap(forward(merged, batch), before) < 1e-3
    assert ours == [chosen(merged, method, name) for method in methods]


@pytest.mark.parametrize("kind", ["lora", "loha", "copied"])
@pytest.mark.parametrize("estimator", ["closed_form", "frobenius"])
def test_closed_forms_hold_behind_adapters(estimator: str, kind: str) -> None:
    method = ZeroOrder(keep_ratio=0.5, estimator=estimator)
    model = adapted("llava", kind)
    ours = chosen(model, method)
    assert ours == chosen(model.merge_and_unload(), method)


def test_dropout_of_adapters_does_not_choose() -> None:
    """While a model is trained, too."""
    method = ZeroOrder(keep_ratio=0.5, combine="sensitivity")
    model = adapted("llava", "lora", lora_dropout=0.5)
    expected = chosen(model, method)
    model.train()
    assert [chosen(model, method) for _ in range(3)] == [expected] * 3


@pytest.mark.parametrize("kind", ["lora", "loha", "copied"])
def test_adapters_that_are_switched_do(kind: str) -> None:
    method = ZeroOrder(keep_ratio=0.5, combine="sensitivity")
    model = adapted("llava", kind)
    own, plain = chosen(model, method), chosen(copy.deepcopy(FAMILIES["llava"].build()), method)
    assert own != plain
    with model.disable_adapter():
        assert chosen(model, method) == plain
    assert chosen(model, method) == own

"""Weights that are quantised: every method works on them as on their float values, and a restored model is the same."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

import vlmopt
from tests.support.families import FAMILIES, Image
from tests.support.mechanism import forward, gap
from tests.support.selectors import SETTINGS, works_on
from vlmopt.families import families
from vlmopt.pruning import Selector, ZeroOrder

LLAVA = FAMILIES["llava"]
METHODS = {name: m for name, m in SETTINGS.items() if works_on(families()["llava"], m)}
pytestmark = pytest.mark.usefixtures("untrained_scorer")


class Multiply(torch.autograd.Function):
    """A kernel without derivatives, as quantised ones are."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
        return x @ (weight.to(x.dtype) * scale[:, None]).T


class Int8(nn.Linear):
    """Weights of eight bits, a scale for every row."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, device="meta")
        scale = linear.weight.detach().abs().amax(1) / 127
        self.weight = nn.Parameter((linear.weight.detach() / scale[:, None]).round().to(torch.int8), False)
        self.bias = linear.bias
        self.scale = nn.Buffer(scale)

    def forward(self, input: Tensor) -> Tensor:
        out: Tensor = Multiply.apply(input, self.weight, self.scale)
        return out if self.bias is None else out + self.bias


def quantised(model: Any) -> Any:
    for name, module in list(model.named_modules()):
        if type(module) is nn.Linear and name != "lm_head":
            model.set_submodule(name, Int8(module))
    return model


def floats(model: Any) -> Any:
    """The same values as floats."""
    for name, module in list(model.named_modules()):
        if isinstance(module, Int8):
            twin = nn.Linear(module.in_features, module.out_features, bias=module.bias is not None)
            twin.weight, twin.bias = nn.Parameter(module.weight.float() * module.scale[:, None]), module.bias
            model.set_submodule(name, twin)
    return model.eval()


def kept(model: Any, batch: Any) -> list[list[bool]]:
    logits = forward(model, batch)
    assert logits.isfinite().all()
    return [m.kept.tolist() for m in vlmopt.report(model).maps(0)]


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_every_method_chooses_as_on_floats(method: Selector) -> None:
    model = quantised(copy.deepcopy(LLAVA.build()))
    twin, batch = floats(copy.deepcopy(model)), LLAVA.inputs([[5, Image(0), 7]])
    dense = forward(model, batch)
    assert gap(forward(twin, batch), dense) < 1e-4
    with vlmopt.optimized(model, method), vlmopt.optimized(twin, method):
        assert kept(model, batch) == kept(twin, batch)
    assert torch.equal(forward(model, batch), dense)


def test_derivatives_are_refused_where_there_are_none() -> None:
    """A projector that is no MLP of one hidden layer can be asked in steps only."""
    model = quantised(copy.deepcopy(LLAVA.build()))
    model.model.multi_modal_projector.act = nn.Sequential(nn.Linear(64, 64), nn.GELU())
    batch = LLAVA.inputs([[5, Image(0), 7]])
    with pytest.raises(ValueError, match=r"quantised weights.*finite_difference"):
        vlmopt.optimize(model, ZeroOrder(keep_ratio=0.5, estimator="jvp"))
    with vlmopt.optimized(model, ZeroOrder(keep_ratio=0.5)):
        assert sum(sum(row) for row in kept(model, batch)) == 8


def int8() -> Any:
    config = pytest.importorskip("torchao.quantization", reason="torchao is not installed").Int8WeightOnlyConfig()
    return transformers.TorchAoConfig(config, modules_to_not_convert=["lm_head"])


def quanto() -> Any:
    pytest.importorskip("optimum.quanto", reason="optimum-quanto is not installed")
    return transformers.QuantoConfig(weights="int8", modules_to_not_convert=["lm_head"])


def eight_bits() -> Any:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    return transformers.BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=["lm_head"])


@pytest.mark.parametrize("config", [int8, quanto, eight_bits])
def test_libraries(config: Any, tmp_path: Any) -> None:
    LLAVA.fresh().save_pretrained(tmp_path)
    model = transformers.LlavaForConditionalGeneration.from_pretrained(tmp_path, quantization_config=config()).eval()
    batch = LLAVA.inputs([[5, Image(0), 7]])
    dense = forward(model, batch)
    for name, method in METHODS.items():
        with vlmopt.optimized(model, method):
            assert any(map(any, kept(model, batch))), name
        assert torch.equal(forward(model, batch), dense), name

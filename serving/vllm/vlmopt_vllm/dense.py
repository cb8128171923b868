"""A projector's layers as plain, whole modules of torch: vLLM's own are split over ranks, and may hide weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from vllm.distributed import tensor_model_parallel_all_gather
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.linear import ColumnParallelLinear, LinearBase, RowParallelLinear


class Linear(nn.Linear):
    """Weights that were copied."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__(weight.shape[1], weight.shape[0], bias is not None, device="meta")
        self.weight = nn.Parameter(weight, requires_grad=False)
        if bias is not None:
            self.bias = nn.Parameter(bias, requires_grad=False)


@torch.no_grad()
def dense_copy(projector: nn.Module) -> nn.Module | None:
    """Copy leaf modules in their order, as a chain; None where the weights of one are hidden."""
    leaves: list[nn.Module] = []
    for module in projector.modules():
        if isinstance(module, LinearBase):
            twin = linear(module)
            if twin is None:
                return None
            leaves.append(twin)
        elif isinstance(module, RMSNorm):
            norm = nn.RMSNorm(module.weight.shape, module.variance_epsilon, device=module.weight.device)
            norm.weight = nn.Parameter(module.weight.detach(), requires_grad=False)
            leaves.append(norm)
        elif not list(module.children()):
            leaves.append(module)
    return Chain(leaves)


class Chain(nn.Sequential):
    """Norm, linear, activation, linear; several patches of a token are joined before the first linear layer."""

    def __init__(self, leaves: list[nn.Module]) -> None:
        super().__init__(*leaves)

    def forward(self, patches: Tensor) -> Tensor:
        x = patches
        for layer in self:
            if isinstance(layer, (nn.Linear, nn.LayerNorm, nn.RMSNorm)):
                width = layer.in_features if isinstance(layer, nn.Linear) else layer.normalized_shape[0]
                x = x.reshape(-1, width)
            x = layer(x)
        return x


def linear(module: LinearBase) -> Linear | None:
    """Copy the whole layer; None where its weights are quantized, or packed away on one of several ranks."""
    weight, bias = module.weight, module.bias
    ranks = getattr(module, "tp_size", 1)
    if weight.ndim != 2 or not weight.is_floating_point():
        if ranks > 1:
            return None
        return probed(module)
    if ranks > 1 and isinstance(module, ColumnParallelLinear):
        weight = tensor_model_parallel_all_gather(weight.contiguous(), 0)
        bias = None if bias is None else tensor_model_parallel_all_gather(bias.contiguous(), 0)
    elif ranks > 1 and isinstance(module, RowParallelLinear):
        weight = tensor_model_parallel_all_gather(weight.contiguous(), 1)
    return Linear(weight.detach(), None if bias is None else bias.detach())


def probed(module: LinearBase) -> Linear:
    """Read off what the layer makes of unit vectors: packing for CPUs leaves no weights to look at."""
    like = next((p for p in module.parameters()), None)
    dtype = torch.float32 if like is None else like.dtype
    origin = only(module(torch.zeros(1, module.input_size, dtype=dtype)))
    large = 2.0**12  # beside which the bias rounds nothing away
    weight = (only(module(large * torch.eye(module.input_size, dtype=dtype))) - origin).T / large
    return Linear(weight.contiguous(), origin[0])


def only(out: Any) -> Tensor:
    """Take the result of a layer of vLLM, which may come with a bias that is not added yet."""
    result: Tensor = out[0] if isinstance(out, tuple) else out
    return result

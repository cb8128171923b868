"""How far the projector's output moves when a token changes a little: S_i = E_u ||J(x_i) u||, u on the unit sphere.

Training-Free Token Pruning via Zeroth-Order Gradient Estimation (ZOO-Prune, arXiv 2509.24837) and exact forms of its
estimate for projectors second(gelu(first(norm(x)))). A token x_i is its p patches together; all arithmetic is fp32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.func import jvp, vmap
from torch.nn.functional import linear

from .signals import TwoLayers

ROWS = 2**14  # rows of one projector call: 320 MiB a tensor at 5120 features


def directions(m: int, p: int, d: int, seed: int) -> Tensor:
    """Return fp32 [m, p, d] on the CPU: m directions of unit length in all p * d dimensions, shared by all tokens."""
    bank = torch.randn(m, p * d, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)
    length: Tensor = bank.norm(dim=1, keepdim=True)
    return (bank / length).view(m, p, d)


def relative_steps(inputs: Tensor, step: float) -> Tensor:
    """Return fp32 [n]: step * ||x_i||, so that a norm in front sees equal changes of all tokens; `step` at x_i = 0."""
    length = inputs.float().flatten(1).norm(dim=1)
    return step * torch.where(length > 0, length, 1.0)


def finite_difference(function: Callable[[Tensor], Tensor], inputs: Tensor, bank: Tensor, steps: Tensor) -> Tensor:
    """Return the paper's two-sided estimate: mean_j ||M(x_i + h_i u_j) - M(x_i - h_i u_j)|| / 2 h_i.

    Args:
        function: [r, p, d_v] fp32 -> [r, d], row by row. inputs: [n, p, d_v]. bank: [m, p, d_v]. steps: fp32 [n] > 0.

    Returns:
        fp32 [n]
    """

    def part(x: Tensor, h: Tensor) -> Tensor:
        offset = h[:, None, None, None] * bank
        ends = torch.cat([x[:, None] + offset, x[:, None] - offset]).flatten(0, 1)
        high, low = function(ends).float().chunk(2)
        moved: Tensor = (high - low).norm(dim=1)
        return moved.view(len(x), -1).mean(1) / (2 * h)

    size = max(ROWS // (2 * len(bank)), 1)
    return torch.cat([part(x, h) for x, h in zip(inputs.float().split(size), steps.split(size), strict=True)])


def forward_mode(function: Callable[[Tensor], Tensor], inputs: Tensor, bank: Tensor) -> Tensor:
    """Return fp32 [n]: mean_j ||J(x_i) u_j|| by forward-mode derivatives, without a step. Arguments as above."""

    def part(x: Tensor) -> Tensor:
        def along(u: Tensor) -> Tensor:
            slope: Tensor = jvp(function, (x,), (u.expand_as(x),))[1].float().norm(dim=1)
            return slope

        return vmap(along)(bank).mean(0)

    return torch.cat([part(x) for x in inputs.float().split(max(ROWS // len(bank), 1))])


@dataclass(frozen=True, eq=False)
class Folded:
    """fp32 second(act(sum over groups of first @ x_hat + bias)): gains and shifts of the norm folded into `first`.

    A group is what the norm acts on: a patch, or the whole token (then, as without a norm, there is one group).
    """

    first: Tensor  # [h, groups, D]
    bias: Tensor  # [h]
    second: Tensor  # [d, h]
    act: Callable[[Tensor], Tensor]
    eps: float | None  # of the norm; None without one
    centred: bool  # a layer norm, no RMS norm

    def standardise(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return x_hat [n, groups, D] and 1 / its divisor [n, groups]."""
        x = inputs.float().reshape(len(inputs), *self.first.shape[1:])
        if self.eps is None:
            return x, x.new_ones(x.shape[:2])
        if self.centred:
            x = x - x.mean(2, keepdim=True)
        scale = (x.square().mean(2) + self.eps).rsqrt()
        return x * scale[:, :, None], scale

    def __call__(self, inputs: Tensor) -> Tensor:
        """Apply the projector in fp32, without the bias of `second`: [n, p, d_v] -> [n, d]."""
        hidden = linear(self.standardise(inputs)[0].flatten(1), self.first.flatten(1), self.bias)
        return linear(self.act(hidden), self.second)

    @cached_property
    def energies(self) -> list[Tensor]:
        """(W1 W1^T) * (W2^T W2) of every group, [h, h] each."""
        gram = self.second.T @ self.second
        return [w @ w.T * gram for w in self.first.unbind(1)]

    def hidden(self, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return x_hat, 1 / divisor, first @ x_hat per group [n, groups, h], and act' of their biased sum [n, h]."""
        unit, scale = self.standardise(inputs)
        along = torch.einsum("nqd,hqd->nqh", unit, self.first)
        before = along.sum(1) + self.bias
        return unit, scale, along, jvp(self.act, (before,), (torch.ones_like(before),))[1]


def fold(layers: TwoLayers, p: int) -> Folded:
    """Return the projector's parts in fp32, for tokens of p patches.

    Raises:
        ValueError: weights that are not plain floating-point matrices, or a norm that is not a layer norm or RMS norm.
    """
    first, second = layers.first.weight, layers.second.weight
    if not (first.is_floating_point() and second.is_floating_point()):
        raise ValueError(
            f"no closed form for quantised weights, got {first.dtype} and {second.dtype}; pass layers=None with a "
            "function instead"
        )
    groups = p if layers.norm is not None and layers.per_patch else 1
    weight = first.float().view(len(first), groups, -1)
    bias = weight.new_zeros(len(first)) if layers.first.bias is None else layers.first.bias.float()
    eps, centred = None, False
    if layers.norm is not None:
        eps, centred = norm_kind(layers.norm)
        gain, shift = getattr(layers.norm, "weight", None), getattr(layers.norm, "bias", None)
        if shift is not None:
            bias = bias + (weight @ shift.float()).sum(1)
        if gain is not None:
            weight = weight * gain.float()
        if centred:  # changes nothing for x_hat, whose mean is 0, and makes it right for directions
            weight = weight - weight.mean(2, keepdim=True)
    return Folded(weight, bias, second.float(), layers.gelu, eps, centred)


def norm_kind(norm: nn.Module) -> tuple[float, bool]:
    """Return the eps of a norm, and whether it subtracts the mean."""
    if isinstance(norm, nn.LayerNorm):
        return norm.eps, True
    if isinstance(norm, nn.RMSNorm):
        return torch.finfo(torch.float32).eps if norm.eps is None else norm.eps, False
    eps = getattr(norm, "variance_epsilon", None)
    if isinstance(eps, float):  # RMS norm of transformers, weight * x_hat; Gemma's 1 + weight has `eps`
        return eps, False
    raise ValueError(f"no closed form for {type(norm).__name__}; pass layers=None with a function instead")


def closed_form(mlp: Folded, inputs: Tensor, bank: Tensor) -> Tensor:
    """Return fp32 [n]: mean_j ||W2 (act'(a_i) * q_ij)||, q_ij = W1 J_norm(x_i) u_j, exactly.

    With r_g the norm's divisor of group g: J_norm u = (u - x_hat (x_hat . u) / D) / r_g for each group, so q_ij is made
    of W1 u_j, shared by all tokens, and W1 x_hat_i: m products with W2 a token, none with W1 but the token's own.
    """
    bank = bank.reshape(len(bank), *mlp.first.shape[1:])
    turned = torch.einsum("mqd,hqd->mqh", bank, mlp.first)

    def part(x: Tensor) -> Tensor:
        unit, scale, along, slope = mlp.hidden(x)
        moved = torch.einsum("nq,mqh->nmh", scale, turned)
        if mlp.eps is not None:
            radial = torch.einsum("nqd,mqd,nq->nmq", unit, bank, scale) / unit.shape[2]
            moved = moved - radial @ along
        reach: Tensor = linear(slope[:, None] * moved, mlp.second).norm(dim=2)
        return reach.mean(1)

    return torch.cat([part(x) for x in inputs.split(max(ROWS // len(bank), 1))])


def frobenius(mlp: Folded, inputs: Tensor) -> Tensor:
    """Return fp32 [n]: sqrt(E_u ||J u||^2) = ||J||_F / sqrt(dimensions of x), without drawing directions.

    An upper bound of E ||J u||. Without a norm ||J||_F^2 = g^T ((W1 W1^T) * (W2^T W2)) g with g = act'(a). With one,
    J_norm^T J_norm adds, for each group, -(2 - |x_hat|^2 / D) / D * ||W2 (g * W1 x_hat)||^2, and the divisor; exact as
    well.
    """
    unit, scale, along, slope = mlp.hidden(inputs)
    total = slope.new_zeros(len(slope))
    for q, product in enumerate(mlp.energies):
        energy = ((slope @ product) * slope).sum(1)
        if mlp.eps is not None:
            size = unit.shape[2]
            radial = linear(slope * along[:, q], mlp.second).square().sum(1)
            energy = energy - (2 - unit[:, q].square().sum(1) / size) / size * radial
        total = total + scale[:, q].square() * energy
    return (total.clamp_min(0) / mlp.first[0].numel()).sqrt()


def low_rank(layers: TwoLayers, rank: int) -> TwoLayers:
    """Return the projector with both matrices cut to their `rank` largest singular values, for scoring only.

    The second matrix comes without its left singular vectors, [rank, h] instead of [d, h]: outputs are rotated, but
    their distances are those of the cut matrix. It has no bias. Deterministic; costs two SVDs.
    """
    left, values, right = torch.linalg.svd(layers.first.weight.float(), full_matrices=False)
    first = frozen_linear((left[:, :rank] * values[:rank]) @ right[:rank], layers.first.bias)
    _, values, right = torch.linalg.svd(layers.second.weight.float(), full_matrices=False)
    second = frozen_linear(values[:rank, None] * right[:rank], None)
    return TwoLayers(layers.norm, layers.per_patch, first, layers.gelu, second)


def frozen_linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """Return a linear layer around given weights, made without drawing random ones."""
    module = nn.Linear(weight.shape[1], len(weight), bias=bias is not None, device="meta")
    module.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        module.bias = nn.Parameter(bias.detach().float(), requires_grad=False)
    return module

"""Cluster tokens by density peaks."""

from __future__ import annotations

import torch
from torch import Tensor

NEIGHBOURS = 5  # that the density of a point counts, itself among them


def density_peaks(x: Tensor, count: int, neighbours: int = NEIGHBOURS) -> tuple[Tensor, Tensor]:
    """Cluster m points around the `count` points that are densest and farthest from anything denser (DPC-kNN).

    Density rho_i = exp(-mean squared distance to the nearest `neighbours`, itself included, over d); distance delta_i
    to the nearest denser point, to the farthest one for the densest; centres have the highest rho * delta. Of equally
    dense points the first counts as denser. Study on Density Peaks Clustering Based on k-Nearest Neighbors and
    Principal Component Analysis (Du, Ding, Jia 2016). Takes memory for m x m numbers.

    Args:
        x: [m, d], any float dtype. count: 1..m. neighbours: >= 1; all m where there are fewer.

    Returns:
        Centres Long[count], ascending indices into m, and Long[m], the number of the centre nearest to each point.
    """
    points = x.float() - x.float().mean(0)  # hidden states share a large offset, which would cost digits
    distance = torch.cdist(points, points).fill_diagonal_(0) / x.shape[1] ** 0.5
    near = distance.topk(min(neighbours, len(x)), largest=False).values
    density = -near.square().mean(1)  # its logarithm, which does not underflow
    order = density.sort(descending=True, stable=True).indices
    rank = torch.empty_like(order).scatter_(0, order, torch.arange(len(x), device=x.device))
    delta = distance.masked_fill(rank[None] >= rank[:, None], torch.inf).amin(1)
    delta = torch.where(rank == 0, distance.amax(1), delta)
    best = (density + delta.log()).sort(descending=True, stable=True).indices[:count]
    centres = best.sort().values
    nearest = distance[:, centres].argmin(1)
    return centres, nearest.scatter(0, centres, torch.arange(count, device=x.device))

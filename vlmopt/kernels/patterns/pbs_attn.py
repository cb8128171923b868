"""PBS-Attn: sort the keys of a segment by importance, so that whole blocks of it can be left out."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from vlmopt.core import setting

from ..sparse_attention.index import Launch, tile_count
from .base import LONGEST, Pattern, blocks_to_index, register, tile_span
from .blocks import beyond_sink, block_grid, by_mass, padding_free, pool_rows
from .prefill import SINKS, Prefill
from .probe import probe_rows


@register("pbs_attn")
@dataclass(frozen=True, kw_only=True)
class PBSAttn(Pattern):
    """Sort keys by importance inside segments; keep blocks of earlier segments by their means, the own segment whole.

    Sparser Block-Sparse Attention via Token Permutation (arXiv 2510.21270). One order per key head: importance is the
    mean attention of the last rows of those of its query heads that the plan is for. The block of the sink always stays
    and counts towards the threshold, the sink itself left out. Heads that follow slashes lose by the order. The
    released code has an order for every query head, no causal mask over the last rows, and the sink in its estimates;
    all three are left out.
    """

    reads = "attention of the last rows; mean queries and keys of blocks"

    tile: int = setting(128, "Query rows that share their keys: 16, 32, 64, 128 or 256.", "int")
    run: int = setting(128, "Neighbouring keys that are read together: 16, 32, 64, 128 or 256.", "int")
    segment: int = setting(256, "Keys that are sorted among themselves; a multiple of run.", "int", min=1, max=LONGEST)
    threshold: float = setting(
        0.9, "Share of the estimated attention that the kept blocks hold.", "float", above=0, max=1
    )
    probe: int = setting(128, "Last rows whose attention orders the keys.", "int", min=1)
    paper_compat: bool = setting(
        False, "As released: the block of the first key comes on top of those that reach the threshold.", "bool"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.segment % self.run:
            raise ValueError(f"{self.name}: segment must be a multiple of run {self.run}, got {self.segment}")

    @property
    def is_identity(self) -> bool:
        return self.threshold == 1

    def build(self, prefill: Prefill) -> list[Launch]:
        order = key_order(prefill, self.segment, self.probe)  # [B, Hk, W]
        low, high = (edge[:, None, :, None] // self.segment for edge in tile_span(prefill, self.tile))
        grid = block_grid(prefill, self.tile, self.run)
        start = torch.arange(grid.visible.shape[-1], device=prefill.device) * self.run
        earlier = grid.visible & (start // self.segment < low)
        own = (start // self.segment >= low) & (start // self.segment <= high) & grid.visible.any(-1, keepdim=True)

        keys = pool_ordered(prefill, order, self.segment, self.run)[:, prefill.key_heads]
        logits = pool_rows(prefill, self.tile) @ keys.mT * prefill.scale
        share = logits.masked_fill_(~earlier, -torch.inf).softmax(-1).nan_to_num_(0)  # tiles of the first segment: 0
        first = earlier & grid.first  # the order leaves the sink in its place
        forced = torch.zeros_like(first) if self.paper_compat else first
        keep = by_mass(share, self.threshold, earlier, forced) | first | own
        full = earlier & (start >= prefill.key_first[:, None, None, None])
        index = blocks_to_index(keep, self.tile, self.run, prefill, full=full)
        return [Launch(replace(index, k_order=order.int()))]


def key_order(prefill: Prefill, segment: int, probe: int) -> Tensor:
    """Return Long[B, Hk, W]: slot -> key, by falling importance inside whole segments, unsorted in a last partial one.

    Padding and the sink keep their slots: the first ones of their segments, and padding behind the last key.
    """
    weights = probe_rows(prefill, probe, sink=False).mean(2)  # [B, H, W]
    member = prefill.key_heads == torch.arange(prefill.k.shape[1], device=prefill.device)[:, None]
    importance = member.to(weights.dtype) @ weights  # [B, Hk, W]; a sum ranks as a mean does
    key = torch.arange(prefill.width, device=prefill.device)
    importance = importance.masked_fill((key < prefill.sink_end[:, None])[:, None], torch.inf)
    importance = importance.masked_fill((key >= prefill.key_end[:, None])[:, None], -1)
    whole = prefill.width // segment * segment
    ranked = importance[..., :whole].unflatten(-1, (-1, segment)).argsort(dim=-1, descending=True, stable=True)
    first = torch.arange(0, whole, segment, device=key.device)
    sorted_keys = (ranked + first[:, None]).flatten(-2)
    return torch.cat([sorted_keys, key[whole:].expand(*sorted_keys.shape[:2], -1)], -1)


def pool_ordered(prefill: Prefill, order: Tensor, segment: int, run: int) -> Tensor:
    """Return fp32 [B, Hk, N, D]: the mean of the real keys in each `run` slots, without the sink.

    0 behind the last whole segment, which none needs. By a product with 0 and 1 inside every segment: a copy of all
    keys in the new order takes several times as long.
    """
    count, parts = prefill.width // segment, segment // run
    whole = count * segment
    slot = torch.empty_like(order).scatter_(
        -1, order, torch.arange(prefill.width, device=order.device).expand_as(order)
    )
    part = (slot[..., :whole] % segment // run).unflatten(-1, (count, segment))  # [B, Hk, M, segment]
    member = part[..., None, :] == torch.arange(parts, device=order.device)[:, None]
    real = padding_free(prefill, beyond_sink(prefill))
    k = prefill.k[:, :, :whole]
    if real is None:
        member[:, :, :1, :, :SINKS] = False
    else:
        real = real[:, None, :whole]
        k = k.masked_fill(~real[..., None], 0)
        member &= real.unflatten(-1, (count, segment))[..., None, :]
    sums = member.to(k.dtype) @ k.unflatten(2, (count, segment))  # [B, Hk, M, parts, D]
    means = (sums.float() / member.sum(-1, keepdim=True).clamp_min(1)).flatten(2, 3)
    return pad(means, (0, 0, 0, tile_count(prefill.width, run) - count * parts))

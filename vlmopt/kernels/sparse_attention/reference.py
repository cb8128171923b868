"""The oracle: write out an index as a boolean mask by plain logic, and take the softmax over it in fp64."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .index import Launch, SparseIndex
from .inputs import AttentionInputs


@dataclass(frozen=True, eq=False)
class Geometry:
    """Where rows and keys of one launch lie, sample by sample, on the CPU."""

    inputs: AttentionInputs
    launch: Launch

    def positions(self, b: int) -> tuple[Tensor, Tensor, int]:
        """Return the position of every row of a sample, the last key it sees (-1: padding), and the first."""
        inputs, launch = self.inputs, self.launch
        offset, real, start = (int(x[b]) for x in (inputs.offset, inputs.row_end, inputs.key_first))
        row = torch.arange(inputs.rows)
        last = row // launch.row_step * launch.row_step + offset - launch.causal_shift
        least = int(launch.key_min[b]) if isinstance(launch.key_min, Tensor) else launch.key_min
        return row + offset, last.masked_fill((row >= real) | (row + offset < start), -1), max(least, start)

    def key_positions(self, b: int, key_head: int) -> Tensor:
        """Return the position of every key of a sample and key head."""
        keys = self.inputs.keys
        if keys is None or keys.key_position is None:
            return torch.arange(self.inputs.width)
        return of(keys.key_position, b, key_head).cpu()

    def heads(self) -> Iterator[tuple[int, int, int]]:
        """Yield number in the output, table and key head of every query head that the launch covers."""
        index, (query_heads, key_heads) = self.launch.index, (self.inputs.q.shape[1], self.inputs.k.shape[1])
        covered = range(query_heads) if index.heads is None else index.heads.tolist()
        for number, head in enumerate(covered):
            yield number, number * index.covered // len(covered), head * key_heads // query_heads


def expand(inputs: AttentionInputs, launch: Launch) -> Tensor:
    """Return Bool[B, H, Sq, W]: which keys each row sees. Loops over tiles: for tests and small reports."""
    inputs, index = inputs.of(launch), launch.index
    shape = Geometry(inputs, launch)
    count = inputs.q.shape[1] if index.heads is None else len(index.heads)
    mask = torch.zeros(index.batch, count, inputs.rows, inputs.width, dtype=torch.bool)
    for b in range(index.batch):
        at, last, least = shape.positions(b)
        for number, table, key_head in shape.heads():
            position = shape.key_positions(b, key_head)
            order = slot_rows(index, b, table, inputs.rows)
            for t, rows in enumerate(order.split(index.tile)):
                rows = rows[rows >= 0]
                kept = torch.zeros(inputs.width + 1, dtype=torch.bool)
                for named in named_keys(index, b, table, key_head, t, inputs.width):
                    kept[named] = True  # -1 is the one more
                own = kept[:-1] | on_slash(index, b, table, at[rows, None] - position)
                mask[b, number, rows] = own & (position >= least) & (position <= last[rows, None])
    return mask.to(index.run_ptr.device)


def of(x: Tensor, b: int, h: int) -> Tensor:
    """Return one row of x [B, 1 | H, n]."""
    return x[b, h if x.shape[1] > 1 else 0]


def slot_rows(index: SparseIndex, b: int, table: int, rows: int) -> Tensor:
    """Return the row of every slot, -1 for none."""
    return torch.arange(rows) if index.q_order is None else of(index.q_order, b, table).cpu().long()


def slot_keys(index: SparseIndex, b: int, key_head: int, width: int) -> Tensor:
    """Return the key of every slot, -1 for none."""
    return torch.arange(width) if index.k_order is None else of(index.k_order, b, key_head).cpu().long()


def named_keys(index: SparseIndex, b: int, table: int, key_head: int, t: int, width: int) -> tuple[Tensor, Tensor]:
    """Return keys of a tile: those that runs and columns name, and those of the grid; -1 for a slot without a key."""
    slots = slot_keys(index, b, key_head, width)
    listed: list[int] = []
    for start in index.run_start[index.run_ptr[b, table, t] : index.run_ptr[b, table, t + 1]].tolist():
        listed += range(start, min(start + index.run, len(slots)))
    if index.col_ptr is not None and index.col_idx is not None:
        listed += index.col_idx[index.col_ptr[b, table, t] : index.col_ptr[b, table, t + 1]].tolist()
    lines = slots[:0]
    if index.grid is not None and index.grid[b, table, 2]:
        lines = slots[int(index.grid[b, table, 1]) :: int(index.grid[b, table, 0])]
    return slots[torch.tensor(listed, dtype=torch.long)], lines


def on_slash(index: SparseIndex, b: int, table: int, distance: Tensor) -> Tensor:
    """Return whether keys at such distances from a row are kept for it."""
    if index.slash is None or index.slash[b, table, 0] == 0:
        return torch.zeros_like(distance, dtype=torch.bool)
    stride, delta = map(int, index.slash[b, table].tolist())
    return (distance - delta) % stride == 0


def reference_attention(
    inputs: AttentionInputs, launch: Launch, return_lse: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """Compute `sparse_attention` by the book. Memory: several times B * H * Sq * W * 8 bytes."""
    index, softcap, keys = launch.index, inputs.softcap, inputs.keys
    q, k, v = inputs.q, inputs.k, inputs.v
    heads = torch.arange(q.shape[1], device=q.device) if index.heads is None else index.heads
    key_head = heads // (q.shape[1] // k.shape[1])
    mask = expand(inputs, launch)
    logits = q[:, heads].double() @ k[:, key_head].double().transpose(-1, -2) * inputs.scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    if keys is not None and keys.bias is not None:
        logits = logits + keys.bias.double().expand(-1, k.shape[1], -1)[:, key_head, None]
    logits = logits.masked_fill(~mask, -torch.inf)
    lse = logits.logsumexp(-1)  # [B, H, Sq]
    weights = (logits - lse[..., None]).exp().masked_fill(~mask, 0)  # where nothing is seen, -inf - -inf is NaN
    out = (weights @ v[:, key_head].double()).to(q.dtype)
    return (out, lse.float()) if return_lse else out

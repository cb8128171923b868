"""What a sparse prefill has to know of a chunk: where padding is, which rows hold text, and how much is computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vlmopt.attention_fix.attention_rows import read_mask

from ....kernels.sparse_attention import AttentionInputs, Launch
from ...call import PromptStep
from ...padding import real

CHECKED = 1024  # rows of a mask that are compared with the causal one at a time


@dataclass(frozen=True, eq=False)
class Layout:
    """Where real tokens are, as far as patterns need it."""

    k_start: Tensor | None = None  # Long[B]
    k_len: Tensor | None = None
    q_len: Tensor | None = None


def work(launches: Sequence[Launch], query: Tensor, key: Tensor) -> Tensor:
    """Return fp32 [H]: the cells that the launches compute for each head, divided by those of the causal triangle."""
    batch, heads, rows, width = *query.shape[:3], key.shape[2]
    cells = torch.zeros(heads, device=query.device, dtype=torch.float32)
    for launch in launches:
        index = launch.index
        own = spanned(index.run_ptr) * (index.tile * index.run)  # [tables]
        own = own + (0 if index.col_ptr is None else spanned(index.col_ptr) * index.tile)
        for lines in (index.grid, index.slash):
            if lines is not None:
                on = lines[..., 0] > 0 if lines.shape[-1] == 2 else lines[..., 2] > 0
                own = own + (on * rows * (width - rows / 2) / lines[..., 0].clamp_min(1)).sum(0)
        covered = torch.arange(heads, device=cells.device) if index.heads is None else index.heads
        cells.index_add_(0, covered, own.float().repeat_interleave(len(covered) // index.covered))  # that share a table
    return cells / (batch * triangle(rows, width))


def visible(given: AttentionInputs) -> Tensor:
    """Return fp32: the cells that real rows see, divided by those of the causal triangle, padding among them."""
    seen = (given.position + 1 - given.key_first[:, None]).where(given.real, 0)
    return seen.sum().float() / (given.batch * triangle(given.rows, given.width))


def triangle(rows: int, width: int) -> float:
    """Return the cells of the causal triangle of one head: of the last `rows` of `width` tokens."""
    return rows * width - rows * (rows - 1) / 2


def spanned(ptr: Tensor) -> Tensor:
    """Return Long[H]: the entries of each table of offsets [B, H, T + 1], over all samples."""
    return (ptr[..., -1] - ptr[..., 0]).sum(0)


def read_layout(query: Tensor, key: Tensor, mask: Tensor | None) -> Layout | str:
    """Read padding from a mask, if the mask is causal apart from it; else say why not."""
    batch, _, rows, _ = query.shape
    width = key.shape[2]
    if mask is None:
        return Layout()
    if mask.ndim == 2:
        valid = mask[:, -width:].bool()
    else:
        allowed, bias = read_mask(mask[..., :width], (batch, mask.shape[1], rows, width), None, key.device)
        if bias is not None and bool(((bias != 0) & allowed).any()):
            return "its mask is no plain mask but adds a bias"
        valid = allowed[:, 0, -1].expand(batch, -1)
        if not is_causal(allowed, valid):
            return "its mask is not causal"
    count, places = valid.sum(1), torch.arange(width, device=valid.device)
    if bool(valid.all()):
        return Layout()
    if bool((valid == (places >= width - count[:, None])).all()):
        return Layout(k_start=width - count)
    if rows == width and bool((valid == (places < count[:, None])).all()):
        return Layout(k_len=count, q_len=count)
    return "padding stands between real tokens"


def is_causal(allowed: Tensor, valid: Tensor) -> bool:
    """Return whether real rows of a mask Bool[B or 1, H or 1, q, kv] see exactly the real keys up to themselves."""
    rows, width = allowed.shape[2:]
    places = torch.arange(width, device=allowed.device)
    for low in range(0, rows, CHECKED):
        own = torch.arange(low, min(low + CHECKED, rows), device=allowed.device) + width - rows
        expected = (places <= own[:, None]) & valid[:, None, :]
        real = valid[:, own]  # what padding rows see is nobody's business
        differs = (allowed[:, :, low : low + CHECKED] != expected[:, None]).any(-1) & real[:, None]
        if bool(differs.any()):
            return False
    return True


def text_rows(step: PromptStep, stage: int, width: int) -> Tensor:
    """Return Long[R]: physical rows that hold text in any sample."""
    rows = step.current(stage)
    logical = rows.log[:, -width:].to(step.device)
    text = real(step).gather(1, logical)
    if step.context is not None:
        text = text & ~step.context.visual.to(step.device).gather(1, logical)
    if rows.valid is not None:
        text = text & rows.valid[:, -width:].to(step.device)
    return text.any(0).nonzero()[:, 0]


def strides(step: PromptStep) -> tuple[int | None, int | None]:
    """Return the tokens from frame to frame and from patch row to patch row, where they are the same everywhere."""
    spans = [] if step.context is None else step.context.spans

    def find() -> tuple[int | None, int | None]:
        frames, rows = set(), set()
        for span in spans:
            if span.grid is None or (span.coords < 0).any():
                return None, None
            t, h, w = span.grid
            places = span.index.view(t, h, w)
            frames |= set((places[1:, 0, 0] - places[:-1, 0, 0]).tolist())
            rows |= set((places[:, 1:, 0] - places[:, :-1, 0]).flatten().tolist())
        return (frames.pop() if len(frames) == 1 else None), (rows.pop() if len(rows) == 1 else None)

    return step.remember(("strides",), None, find)

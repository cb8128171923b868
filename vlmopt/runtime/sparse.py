"""Sparse prefill inside the attention function: when it applies, what the patterns are told, and what it left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vlmopt.attention_fix.rows import read_mask

from ..kernels.metrics import recall
from ..kernels.patterns import DensePattern, Prefill, View
from ..kernels.sparse_attention import Launch, chosen_backend, run_plan
from ..prefill import SparsePrefill
from . import attention
from .call import Session, Step
from .compat import layer_config
from .corrections import Corrections
from .marks import Marks
from .places import decoding, real

CHECKED = 1024  # rows of a mask that are compared with the causal one at a time


@dataclass
class Ran:
    """One layer's sparse prefill."""

    backend: str
    patterns: dict[str, int]  # name -> heads
    tokens: int
    work: Tensor  # fp32 scalar: cells computed over those of the causal triangle, padding among them
    index: tuple[Any, Any]  # marks in time
    attention: tuple[Any, Any]
    dense_rows: int
    recall: Tensor | None = None  # fp32 [B, H, R]


@dataclass(frozen=True, eq=False)
class Layout:
    """Where real tokens are, as far as patterns need it."""

    k_start: Tensor | None = None  # Long[B]
    k_len: Tensor | None = None
    q_len: Tensor | None = None


class Sparse(dict[int, list[Ran]]):
    """State of a page: layer -> its sparse prefills, chunk by chunk."""


class SparseLayer(attention.Kernel):
    """The sparse prefill of one layer."""

    def __init__(self, session: Session, layer: int, method: SparsePrefill) -> None:
        self.session, self.layer, self.method = session, layer, method
        self.stage = session.stage_of[layer]
        corrections = session.component(Corrections)
        self.corrected = corrections is not None and layer in corrections.layers
        self.groups = method.groups(layer, layer_config(session.anatomy.config, layer).num_attention_heads)

    def run(
        self, step: Step, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kw: Any
    ) -> Tensor | None:
        """The layer's attention output [B, Q, H, D]; None where it has to be dense."""
        if decoding(step):
            return None
        layout = self.layout(step, query, key, mask, **kw)
        if isinstance(layout, str):
            step.call.skip(f"sparse prefill in layer {self.layer}", layout)
            return None
        clock, scale = step.call.clock, kw.get("scaling")
        scale = query.shape[-1] ** -0.5 if scale is None else float(scale)
        lengths: dict[str, Any] = {"q_len": layout.q_len, "k_len": layout.k_len, "k_start": layout.k_start}
        start = clock.now()
        launches = [
            launch
            for pattern, heads in self.groups
            for launch in pattern.build(self.prefill(step, query, key, value, scale, heads, lengths))
        ]
        share = work(launches, query, key)
        if float(share) > self.method.max_work:  # gathering so many keys is slower than the dense kernel
            kept = f"{100 * float(share):.0f} % of the cells are more than max_work={self.method.max_work:g}"
            step.call.skip(f"sparse prefill in layer {self.layer}", kept)
            step.call.page.scoring.append((start, clock.now()))
            return None
        built = clock.now()
        softcap, backend = kw.get("softcap"), self.method.backend
        out: Any = run_plan(query, key, value, launches, scale=scale, softcap=softcap, backend=backend, **lengths)
        out = out.transpose(1, 2)
        rows = self.dense_rows(step, query.shape[2])
        if rows is not None:
            every = torch.arange(query.shape[1], device=query.device)
            given = self.prefill(step, query, key, value, scale, every, lengths)
            out = self.densely(out, rows.to(query.device), given, lengths, softcap)
        end = clock.now()
        step.call.page.slot(Sparse).setdefault(self.layer, []).append(
            Ran(
                chosen_backend(query, launches, backend),
                {pattern.name: len(heads) for pattern, heads in self.groups},
                key.shape[2],
                share,
                (start, built),
                (built, end),
                0 if rows is None else len(rows),
                self.recall(step, query, key, value, scale, launches, lengths) if self.method.recall_rows else None,
            )
        )
        return out

    def recall(
        self,
        step: Step,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scale: float,
        launches: Sequence[Launch],
        lengths: dict[str, Any],
    ) -> Tensor:
        """fp32 [B, H, R]: share of the dense attention that sampled rows keep; costs a second run."""
        start = step.call.clock.now()
        every = torch.arange(query.shape[1], device=query.device)
        given = self.prefill(step, query, key, value, scale, every, lengths)
        rows = torch.linspace(0, query.shape[2] - 1, self.method.recall_rows, device=query.device).long().unique()
        found = recall(given, launches, rows.expand(query.shape[0], -1), self.method.backend)
        step.call.page.scoring.append((start, step.call.clock.now()))
        return found

    def layout(self, step: Step, query: Tensor, key: Tensor, mask: Tensor | None, **kwargs: Any) -> Layout | str:
        """Where padding is; or, in words, why this layer has to be dense."""
        least = self.method.shortest(query.device)
        if key.shape[2] < least:
            return f"the prompt is shorter than min_len={least}"
        window = kwargs.get("sliding_window")
        if window is not None and window < key.shape[2]:
            return "a sliding-window layer"
        if key.shape[2] != step.stored(self.stage):
            return "a static cache"
        return step.remember(("layout", self.stage), mask, lambda: read_layout(query, key, mask))

    def prefill(
        self, step: Step, query: Tensor, key: Tensor, value: Tensor, scale: float, heads: Tensor, lengths: Any
    ) -> Prefill:
        marks = step.find(Marks)
        modality = None if marks is None else marks.of_keys(step, self.stage, key.shape[2], "image").long()
        frame, row = strides(step) if self.stage == 0 else (None, None)  # after a cut the steps are no longer even
        return Prefill(
            q=query, k=key, v=value, scale=scale, heads=heads.to(query.device), frame=frame, row=row,
            modality=None if modality is None else modality.to(query.device), **lengths,
        )  # fmt: skip

    def dense_rows(self, step: Step, width: int) -> Tensor | None:
        """Long[R] rows that are computed densely: text, where it is short or corrected."""
        plan_edits = self.corrected
        if not self.method.dense_text and not plan_edits:
            return None
        rows = step.remember(("text rows", self.stage, width), None, lambda: text_rows(step, self.stage, width))
        return rows if len(rows) and (plan_edits or len(rows) <= self.method.dense_text) else None

    def densely(
        self, out: Tensor, rows: Tensor, given: Prefill, lengths: dict[str, Any], softcap: float | None
    ) -> Tensor:
        """`out` with some rows computed over all keys."""
        assert given.v is not None
        view = View(given, rows=rows.expand(given.batch, -1), consecutive=False)
        backend = self.method.backend if self.method.backend in ("reference", "gather", "triton") else "auto"
        exact: Any = run_plan(
            given.q, given.k, given.v, DensePattern().select(view), scale=given.scale, softcap=softcap,
            backend=backend, **lengths,
        )  # fmt: skip
        return out.index_copy(1, rows, exact.transpose(1, 2)[:, rows])


def method_of(session: Session) -> SparsePrefill | None:
    """What the policy asks for; None where that is nothing."""
    method = session.policy.prefill
    return None if method is None or method.neutral else method


def install(session: Session) -> None:
    """Give every layer with attention and a pattern its sparse prefill."""
    method = method_of(session)
    if method is None:
        return
    for layer, module in enumerate(session.anatomy.attentions):
        if attention.why_not(module) is None:
            found = SparseLayer(session, layer, method)
            if found.groups:
                attention.plan_of(session, layer).prefill = found


def work(launches: Sequence[Launch], query: Tensor, key: Tensor) -> Tensor:
    """fp32: cells that the launches compute, over all cells of the causal triangle."""
    batch, heads, rows, width = *query.shape[:3], key.shape[2]
    cells = torch.zeros((), device=query.device)
    for launch in launches:
        index = launch.index
        own = torch.zeros_like(cells) + index.tile * index.run * len(index.run_start)
        own += 0 if index.col_idx is None else index.tile * len(index.col_idx)
        for lines in (index.grid, index.slash):
            if lines is not None:
                on = lines[..., 0] > 0 if lines.shape[-1] == 2 else lines[..., 2] > 0
                own += (on * rows * (width - rows / 2) / lines[..., 0].clamp_min(1)).sum()
        cells += own * ((heads if index.heads is None else len(index.heads)) // index.covered)  # that share a table
    return cells / (batch * heads * (rows * width - rows * (rows - 1) / 2))


def read_layout(query: Tensor, key: Tensor, mask: Tensor | None) -> Layout | str:
    """Padding from a mask, if the mask is causal apart from it."""
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
    """Whether real rows of a mask Bool[B or 1, H or 1, q, kv] see exactly the real keys up to themselves."""
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


def text_rows(step: Step, stage: int, width: int) -> Tensor:
    """Long[R]: physical rows that hold text in any sample."""
    rows = step.current(stage)
    logical = rows.log[:, -width:].to(step.device)
    text = real(step).gather(1, logical)
    if step.context is not None:
        text = text & ~step.context.visual.to(step.device).gather(1, logical)
    if rows.valid is not None:
        text = text & rows.valid[:, -width:].to(step.device)
    return text.any(0).nonzero()[:, 0]


def strides(step: Step) -> tuple[int | None, int | None]:
    """Tokens from frame to frame and from patch row to patch row, where they are the same everywhere."""
    if step.context is None:
        return None, None

    def find() -> tuple[int | None, int | None]:
        assert step.context is not None
        frames, rows = set(), set()
        for span in step.context.spans:
            if span.grid is None or (span.coords < 0).any():
                return None, None
            t, h, w = span.grid
            places = span.index.view(t, h, w)
            frames |= set((places[1:, 0, 0] - places[:-1, 0, 0]).tolist())
            rows |= set((places[:, 1:, 0] - places[:, :-1, 0]).flatten().tolist())
        return (frames.pop() if len(frames) == 1 else None), (rows.pop() if len(rows) == 1 else None)

    return step.remember(("strides",), None, find)

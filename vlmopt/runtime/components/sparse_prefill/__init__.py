"""Sparse prefill inside the attention function: when it applies, what the patterns are told, and what it left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ....kernels.metrics import recall
from ....kernels.patterns import DensePattern, Prefill, View
from ....kernels.sparse_attention import Launch, chosen_backend, run_plan
from ....policy import Policy
from ....prefill import SparsePrefill
from ...call import Call, PromptStep, Session, Step
from ...compat import layer_config
from ...component import Account, AttentionPart, Component
from ...hooks.attention import plan_of, why_not
from ...points import AttentionCall
from ...structure import ModelStructure
from ..marks import FOREIGN, Marks
from .check import check_prefill
from .layout import Layout, read_layout, strides, text_rows, visible, work
from .report import Ran, Sparse, lines, sparse_layers


class SparseLayer(AttentionPart):
    """The sparse prefill of one layer."""

    def __init__(self, session: Session, layer: int, method: SparsePrefill) -> None:
        self.session, self.layer, self.method = session, layer, method
        self.stage = session.stages.of(layer)
        self.groups = method.groups(layer, layer_config(session.structure.config, layer).num_attention_heads)

    def compute(self, step: Step, at: AttentionCall) -> Tensor | None:
        """Return the layer's attention output [B, Q, H, D]; None where it has to be dense."""
        if not isinstance(step, PromptStep):
            return None
        layout, query, key = self.layout(step, at), at.query, at.key
        if isinstance(layout, str):
            step.call.skip(f"sparse prefill in layer {self.layer}", layout)
            return None
        clock = step.call.ledger.clock
        start = clock.now()
        given = self.prefill(step, layout, at)
        groups = [(pattern, replace(given, heads=heads.to(query.device))) for pattern, heads in self.groups]
        launches = [launch for pattern, prefill in groups for launch in pattern.build(prefill)]
        by_head = work(launches, query, key)
        share = by_head.mean()
        if float(share) > self.method.max_work:  # gathering so many keys is slower than the dense kernel
            kept = f"{100 * float(share):.0f} % of the cells are more than max_work={self.method.max_work:g}"
            step.call.skip(f"sparse prefill in layer {self.layer}", kept)
            step.call.page.scoring.append((start, clock.now()))
            return None
        built = clock.now()
        backend = self.method.backend
        result: Any = run_plan(given, launches, backend=backend)
        out: Tensor = result.transpose(1, 2)
        rows = self.dense_rows(step, query.shape[2])
        if rows is not None:
            out = self.densely(out, rows.to(query.device), given)
        end = clock.now()
        step.call.page.slot(Sparse).setdefault(self.layer, []).append(
            Ran(
                chosen_backend(given, launches, backend),
                {pattern.name: len(heads) for pattern, heads in self.groups},
                key.shape[2],
                share,
                (by_head >= visible(given)).sum(),
                (start, built),
                (built, end),
                0 if rows is None else len(rows),
                self.recall(step, given, launches) if self.method.recall_rows else None,
            )
        )
        return out

    def recall(self, step: PromptStep, given: Prefill, launches: Sequence[Launch]) -> Tensor:
        """Return fp32 [B, H, R]: the share of the dense attention that sampled rows keep; costs a second run."""
        rows = (
            torch.linspace(0, given.rows - 1, self.method.recall_rows, device=given.device, dtype=torch.float32)
            .long()
            .unique()
        )
        with step.call.ledger.timed(step.call.page.scoring):
            return recall(given, launches, rows.expand(given.batch, -1), self.method.backend)

    def layout(self, step: PromptStep, at: AttentionCall) -> Layout | str:
        """Return where padding is; or, in words, why this layer has to be dense."""
        query, key, mask = at.query, at.key, at.mask
        least = self.method.shortest(query.device)
        if key.shape[2] < least:
            return f"the prompt is shorter than min_len={least}"
        if at.window is not None and at.window < key.shape[2]:
            return "a sliding-window layer"
        if step.store(self.stage, self.layer) != self.stage:
            return "keys of earlier turns were evicted, so that heads see different ones"
        if key.shape[2] != step.stored(self.stage):
            return "a static cache"
        return step.remember(("layout", self.stage), mask, lambda: read_layout(query, key, mask))

    def prefill(self, step: PromptStep, layout: Layout, at: AttentionCall) -> Prefill:
        """Return what patterns are told of this layer, for all of its heads."""
        query, key = at.query, at.key
        marks = step.find(Marks)
        modality = None if marks is None else marks.of_keys(step, self.stage, key.shape[2], "image").long()
        frame, row = strides(step) if self.stage == 0 else (None, None)  # after a cut the steps are no longer even
        return Prefill(
            query, key, at.value, at.scaling, layout.q_len, layout.k_len, layout.k_start, softcap=at.softcap,
            heads=torch.arange(query.shape[1], device=query.device),
            modality=None if modality is None else modality.to(query.device), frame=frame, row=row,
        )  # fmt: skip

    def dense_rows(self, step: PromptStep, width: int) -> Tensor | None:
        """Return Long[R]: rows that are computed densely (text, where it is short or corrected)."""
        corrected = any(part.edits_text for part in plan_of(self.session, self.layer).parts)
        if not self.method.dense_text and not corrected:
            return None
        rows = step.remember(("text rows", self.stage, width), None, lambda: text_rows(step, self.stage, width))
        return rows if len(rows) and (corrected or len(rows) <= self.method.dense_text) else None

    def densely(self, out: Tensor, rows: Tensor, given: Prefill) -> Tensor:
        """Return `out` with some rows computed over all keys."""
        view = View(given, rows=rows.expand(given.batch, -1), consecutive=False)
        backend = self.method.backend if self.method.backend in ("reference", "native", "gather", "triton") else "auto"
        exact: Any = run_plan(given, DensePattern().select(view), backend=backend)
        return out.index_copy(1, rows, exact.transpose(1, 2)[:, rows])


class SparsePrefills(Component):
    """Give every layer with attention and a pattern its sparse prefill."""

    on_single_rows = False

    def __init__(self, session: Session, method: SparsePrefill) -> None:
        super().__init__(session)
        self.method = method

    @staticmethod
    def check(model: Any, structure: ModelStructure, policy: Policy) -> None:
        if policy.prefill is not None:
            check_prefill(model, structure, policy.prefill)

    @classmethod
    def of(cls, session: Session) -> SparsePrefills | None:
        method = session.policy.sparse
        return None if method is None else cls(session, method)

    def install(self) -> None:
        session = self.session
        for layer, module in enumerate(session.structure.attentions):
            if why_not(module) is None and (found := SparseLayer(session, layer, self.method)).groups:
                plan_of(session, layer).parts.append(found)

    def open_step(self, step: Step, cache: Any) -> None:
        """Note where patterns cannot be told which keys show images."""
        if isinstance(step, PromptStep) and step.find(Marks) is None:
            step.call.skip("images in sparse prefill", FOREIGN)

    def report(self, call: Call) -> Account:
        """Report which layers ran sparse, what that left out, and which could not."""
        entries, attentions = sparse_layers(call), enumerate(self.session.structure.attentions)
        reasons = {layer: why_not(module) for layer, module in attentions if layer >= self.method.dense_layers}
        skipped = {f"sparse prefill in layer {layer}": why for layer, why in reasons.items() if why is not None}
        return Account({"prefill": entries}, lines(entries), skipped)

"""What a sparse prefill reads of the attention map: blocks of every head, and how much attention they hold."""

from __future__ import annotations

from typing import Any

import streamlit as st

from vlmopt.analysis.head_maps import HeadMap, head_maps
from vlmopt.apps.page.jobs import escaped
from vlmopt.apps.page.models import Progress
from vlmopt.apps.page.running import Worker, prepared
from vlmopt.apps.page.state import Request, Run
from vlmopt.methods import describe
from vlmopt.prefill import SparsePrefill

POLICY = "the policy's pattern"
SHORT, SMALL = 2048, 16  # prompt tokens below which blocks are made small enough to be seen, and how small


def show(run: Run, worker: Worker) -> None:
    st.caption(
        "Which blocks of the attention map a sparse prefill computes: rows are reading tokens, columns the tokens they "
        "read. Density is what is computed, recall the share of the dense attention that this holds."
    )
    tokens = run.dense.report.samples[0]["prompt_tokens"]
    told(run, tokens)
    patterns = [method["name"] for method in describe() if method["kind"] == "pattern"]
    choices = [*([POLICY] if run.request.policy.prefill is not None else []), *patterns]
    start = 0 if choices[0] == POLICY else patterns.index("min_p")
    left, right = st.columns(2)
    name = left.selectbox("Pattern", choices, index=start, key=f"sparse-pattern-{run.id}")
    layer = right.selectbox("Layer", range(run.about.layers), index=run.about.layers // 2, key=f"sparse-layer-{run.id}")
    prefill = run.request.policy.prefill if name == POLICY else SparsePrefill.from_dict({"method": name})
    block = SMALL if tokens < SHORT else None
    if block:
        st.caption(
            f"The prompt has only {tokens} tokens, so blocks are {SMALL} × {SMALL} here; longer ones get the pattern's."
        )
    label = f"Draw the heads of layer {layer}"
    found = worker.once(run, f"sparse-{name}-{layer}", label, measure, run.request, prefill, layer, block)
    if found is None:
        return
    if isinstance(found, str):
        st.info(escaped(found))
        return
    table = [
        {"head": m.head, "pattern": m.pattern, "blocks": m.blocks, "cells": m.cells, "recall": m.recall} for m in found
    ]
    percent = st.column_config.NumberColumn(format="percent")
    st.dataframe(
        table,
        hide_index=True,
        width="stretch",
        column_config=dict.fromkeys(("blocks", "cells", "recall"), percent),
    )
    if all(m.blocks > 0.999 for m in found):
        st.info(
            "This pattern reads every block of so short a prompt: its windows and lines cover it. Sparse prefill is "
            "for thousands of tokens; x_attention and min_p leave something out here as well."
        )
    chosen = st.selectbox("Head", range(len(found)), key=f"sparse-head-{run.id}")
    panels = found[chosen].panels
    for column, panel in zip(st.columns(2), panels, strict=False):
        column.image(panel, width="stretch")
    if len(panels) == 1:
        st.caption(
            "Read in natural order. boundary_2d, q_boundary and pbs_attn rearrange tokens first: they get a second map."
        )


def told(run: Run, tokens: int) -> None:
    """Say what the run itself did."""
    layers = run.optimized.report.prefill
    if layers:
        work = sum(entry["work"] for entry in layers) / len(layers)
        st.success(f"In this run {len(layers)} layers read {work:.1%} of the cells.")
    elif run.request.policy.prefill is not None:
        why = "; ".join(sorted({s["why"] for s in run.optimized.report.skipped if "sparse" in s["what"]}))
        st.info(
            f"This run stayed dense: {escaped(why) or 'nothing was left out'}. What the pattern would read can be "
            "drawn anyway."
        )
    else:
        st.info(
            f"This policy has no sparse prefill; **long-video** has, and it starts at thousands of tokens (this prompt "
            f"has {tokens}). What a pattern would read can be drawn anyway."
        )


def measure(
    model: Any,
    processor: Any,
    request: Request,
    prefill: SparsePrefill,
    layer: int,
    block: int | None,
    progress: Progress,
) -> list[HeadMap] | str:
    """Return the maps, or why there are none."""
    inputs = prepared(model, processor, request).inputs
    progress(0.05, "Reading the prompt")
    try:
        return head_maps(model, inputs, prefill, layer, block=block, progress=progress)
    except ValueError as error:
        return f"{error}."

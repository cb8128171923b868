"""How many visual tokens every decoder layer works on, and what each stage left."""

from __future__ import annotations

from typing import Any

import altair as alt
import streamlit as st

from vlmopt.apps.page import figures
from vlmopt.apps.page.running import Worker
from vlmopt.apps.page.state import Run
from vlmopt.overlay import overlay
from vlmopt.reporting import Report

PARTS = ["kept", "markers", "dropped"]


def show(run: Run, worker: Worker) -> None:
    report = run.optimized.report
    st.caption(
        "Visual tokens that every decoder layer works on. A method that prunes before the LLM saves work in all "
        "layers; one that looks at attention first has to let some layers see everything."
    )
    sample = report.samples[0]
    if not sample["visual_tokens"]:
        st.info("This prompt brought no visual tokens. Add an image or a video.")
        show_cache(report)
        return
    rows = counts(sample, len(report.key_lengths))
    x = alt.X("layer:O", title="decoder layer", axis=alt.Axis(labelAngle=0, labelOverlap=True))
    y = alt.Y("amount:Q", title="visual tokens")
    bars = figures.stacked(rows, x, y, PARTS, (figures.KEPT, figures.ORANGE, figures.FAINT))
    figures.show(bars)
    st.markdown(
        f"On average a layer works on **{sample['layer_average']:.0f} of {sample['visual_tokens']}** visual tokens; "
        f"**{sample['visual_tokens_kept']}** are left at the end"
        + (f", and {sample['markers']} markers stand for dropped runs." if sample["markers"] else ".")
    )
    show_cache(report)
    stages = report.stages()
    if not stages:
        st.info(
            "Nothing was pruned in this run, so every layer works on every token of the prompt. Choose **progressive** "
            "to see several stages, or **attention-25** for one."
        )
        return
    columns = st.columns(2, gap="large")
    for number, stage in enumerate(stages):
        with columns[number % len(columns)]:
            st.markdown(f"**Before layer {stage.layer}** · `{stage.method}` · {stage.before} → {stage.after}")
            st.image(overlay(run.shown, stage.maps), width="stretch")


def show_cache(report: Report) -> None:
    """Draw the keys that every layer held when the prompt was over, and those that it evicted."""
    x = alt.X("layer:O", title="decoder layer", axis=alt.Axis(labelAngle=0, labelOverlap=True))
    y = alt.Y("amount:Q", title="keys in the cache")
    figures.show(figures.stacked(keys(report), x, y, ["kept", "evicted"], (figures.KEPT, figures.FAINT)))
    before, after = (f"**{size / 2**10:.0f} KiB**" for size in (report.kv_bytes_prompt, report.kv_cache_bytes))
    if report.kv:
        st.markdown(f"When the prompt was over the cache went from {before} to {after}.")
    else:
        st.markdown(f"When the prompt was over the cache held {after}.")


def keys(report: Report) -> list[dict[str, Any]]:
    """Return entries (layer, part, amount) of a stacked bar per layer: what its cache holds, and what left it."""
    rows = [{"layer": layer, "part": "kept", "amount": amount} for layer, amount in enumerate(report.key_lengths)]
    return rows + [
        {"layer": own["layer"], "part": "evicted", "amount": own["slots_before"] - own["slots_after"]}
        for own in report.kv
        if own["slots_after"] < own["slots_before"]
    ]


def counts(sample: dict[str, Any], depth: int) -> list[dict[str, Any]]:
    """Return entries (layer, part, amount) of a stacked bar per layer, from the report's stages."""
    rows = []
    for layer in range(depth):
        left, markers = sample["visual_tokens"], 0
        for stage in sample["stages"]:
            if stage["layer"] <= layer:
                left, markers = stage["after"], markers + stage["markers"]
        gone = sample["visual_tokens"] - left - markers
        rows += [
            {"layer": layer, "part": part, "amount": amount}
            for part, amount in zip(PARTS, (left, markers, gone), strict=True)
            if amount > 0
        ]
    return rows

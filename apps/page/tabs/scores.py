"""Which tokens each cut ranked high: a heat map over the image, and the scores with the place of the cut."""

from __future__ import annotations

import altair as alt
import numpy as np
import streamlit as st
import torch

from vlmopt.apps.page import figures
from vlmopt.apps.page.running import Worker
from vlmopt.apps.page.state import Run
from vlmopt.overlay import overlay
from vlmopt.reporting import Stage

BINS = 40
SPREAD = 50.0  # largest score over the median one, from which on the axis is logarithmic
FATES = ["kept", "dropped"]


def show(run: Run, worker: Worker) -> None:
    st.caption(
        "How each pruning step ranked the visual tokens: bright cells scored high, outlined cells stayed. "
        "Colours are ranks, so that one outlier does not flatten the rest."
    )
    stages = run.optimized.report.stages()
    if not stages:
        st.info(
            "Nothing was pruned in this run, so there are no scores. Choose a preset such as **attention-25**, or a "
            "pruning method with a keep ratio below 1, and run again."
        )
        return
    for stage in stages:
        st.markdown(f"**Before layer {stage.layer}** · `{stage.method}` · {stage.before} → {stage.after} tokens")
        if all(m.scores is None for m in stage.maps):
            st.info(
                f"`{stage.method}` does not rank tokens by a score, so there is no heat map; **Layer by layer** shows "
                "what it kept. Methods that rank are, among others, fastv, debias, zeroth_order and sparse_vlm."
            )
            continue
        left, right = st.columns([1, 1], gap="large")
        with left:
            st.image(overlay(run.shown, stage.maps, heat=True, title=stage.method), width="stretch")
        with right:
            histogram(stage)


def histogram(stage: Stage) -> None:
    """Draw the scores by fate; the cut is drawn where the score alone decided."""
    scores = torch.cat([m.scores for m in stage.maps if m.scores is not None])
    kept = torch.cat([m.kept for m in stage.maps if m.scores is not None])
    known = ~scores.isnan()
    scores, kept = scores[known], kept[known]
    if not len(scores):
        st.info("No token had a score of its own at this cut.")
        return
    low, middle, high = float(scores.min()), float(scores.median()), float(scores.max())
    log = low > 0 and high > SPREAD * middle
    place = scores.log10() if log else scores
    edges = np.histogram_bin_edges(place.numpy(), bins=BINS)
    rows = [
        {"from": float(a), "to": float(b), "part": name, "amount": int(n)}
        for name, chosen in zip(FATES, (kept, ~kept), strict=True)
        for a, b, n in zip(edges[:-1], edges[1:], np.histogram(place[chosen].numpy(), bins=edges)[0], strict=True)
        if n
    ]
    x = alt.X("from:Q", bin="binned", title="log10 of the score" if log else "score")
    bars = figures.stacked(rows, x, alt.Y("amount:Q", title="tokens"), FATES, (figures.KEPT, figures.GREY))
    chart: figures.Chart = bars.encode(x2="to:Q")
    worst, best = (float(part.max() if top else part.min()) if len(part) else None
                   for part, top in ((place[kept], False), (place[~kept], True)))  # fmt: skip
    if worst is not None and best is not None and worst >= best:
        line = figures.chart_of([{"cut": (worst + best) / 2}]).mark_rule(
            color=figures.RED, strokeWidth=2, strokeDash=[6, 4]
        )
        chart = alt.layer(chart, line.encode(x="cut:Q", tooltip=[alt.Tooltip("cut:Q", format=".4g")]))
        said = "The dashed line is the cut: everything right of it stayed."
    elif best is None:
        said = "Every token with a score stayed."
    else:
        said = "No line is drawn: this method does not keep the highest scores alone, so both groups overlap."
    figures.show(chart)
    st.caption(said)

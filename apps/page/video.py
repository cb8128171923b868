"""A clip frame by frame: what was kept of each, and how many tokens every frame has left."""

from __future__ import annotations

from dataclasses import replace

import altair as alt
import pandas as pd
import streamlit as st

from vlmopt.apps.page import results
from vlmopt.apps.page.state import Run
from vlmopt.overlay import GAP, overlay
from vlmopt.reporting import VisualMap

COLUMNS = 4
GREEN = "#009e73"


@st.fragment
def frames(run: Run) -> None:
    """Show the main page of a run on a clip; its sliders redraw it alone."""
    maps = run.optimized.report.maps(0)
    left, right = st.columns(2, gap="medium")
    steps = [(m, t) for m in maps for t in range(m.grid[0] if m.grid else 1)]
    with right:
        st.markdown("##### What the model keeps")
        place = st.empty()
        ratio = results.retention(run)
        if run.ladder is not None and ratio is not None and ratio != run.ladder.own:
            maps = run.ladder.maps(maps, ratio)
            steps = [(m, t) for m in maps for t in range(m.grid[0] if m.grid else 1)]
    with left:
        st.markdown("##### The clip")
        shown = st.empty()
        chosen = 0
        if len(steps) > 1:
            chosen = st.slider("Frame", 1, len(steps), 1, key=f"frame-{run.id}", help="One for each step in time.") - 1
    shown.image(run.shown[min(chosen, len(run.shown) - 1)], width="stretch", alt=f"Frame {chosen + 1} of the clip")
    drawn = overlay([run.shown[min(chosen, len(run.shown) - 1)]], [still(*steps[chosen])])
    drawn = drawn.crop((GAP, GAP, drawn.width - GAP, drawn.height - results.LEGEND))
    place.image(drawn, width="stretch", alt="Kept cells clear, dropped cells dark")
    counts = [int(still(m, t).kept.sum()) for m, t in steps]
    right.caption(f"**{counts[chosen]} of {len(still(*steps[chosen]).kept)}** tokens of frame {chosen + 1} are kept.")
    table = pd.DataFrame({"frame": range(1, len(counts) + 1), "kept": counts})
    bars = alt.Chart(table).mark_bar(color=GREEN).encode(
        x=alt.X("frame:O", title="frame", axis=alt.Axis(labelAngle=0)),
        y=alt.Y("kept:Q", title="tokens kept"),
        tooltip=["frame", "kept"],
    )  # fmt: skip
    st.altair_chart(bars.properties(height=150), width="stretch")
    with st.expander("All frames", icon=":material/grid_view:"):
        st.image(overlay(run.shown, maps, columns=COLUMNS), width="stretch", alt="Every frame with its kept cells")


def still(m: VisualMap, t: int) -> VisualMap:
    """Return one frame of a video's map as the map of an image."""
    if m.grid is None:
        return m
    here = m.coords[:, 0] == t
    coords = m.coords[here].clone()
    coords[:, 0] = 0
    return replace(
        m,
        grid=(1, *m.grid[1:]),
        coords=coords,
        kept=m.kept[here],
        markers=m.markers[here],
        merged=m.merged[here],
        merged_into=m.merged_into[here],
        scores=None if m.scores is None else m.scores[here],
    )

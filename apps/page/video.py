"""A clip frame by frame: which frame is shown, what was kept of it, and how many tokens every frame has left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import altair as alt
import streamlit as st

from vlmopt.apps.page import figures
from vlmopt.apps.page.state import Run
from vlmopt.overlay import overlay
from vlmopt.reporting import VisualMap

COLUMNS = 4


def chosen(run: Run, maps: Sequence[VisualMap]) -> int:
    """Draw the slider of a clip's frames and what each has left; return the chosen one, from 0; 0 for an image."""
    if run.request.clip is None:
        return 0
    steps = stills(maps)
    frame = 0
    if len(steps) > 1:
        frame = st.slider("Frame", 1, len(steps), 1, key=f"frame-{run.id}", help="One for each step in time.") - 1
    if steps:
        bars(run, maps, frame)
    return frame


def bars(run: Run, maps: Sequence[VisualMap], frame: int) -> None:
    """Draw tokens by frame, the chosen one in full colour."""
    counts = [int(one.kept.sum()) for one in stills(maps)]
    st.caption(f"**{counts[frame]} of {len(stills(maps)[frame].kept)}** tokens of frame {frame + 1} are kept.")
    rows = [{"frame": n + 1, "kept": count, "chosen": n == frame} for n, count in enumerate(counts)]
    chart = (
        figures.chart_of(rows)
        .mark_bar(color=figures.KEPT)
        .encode(
            x=alt.X("frame:O", title="frame", axis=alt.Axis(labelAngle=0)),
            y=alt.Y("kept:Q", title="tokens kept"),
            opacity=alt.condition("datum.chosen", alt.value(1), alt.value(0.5)),
            tooltip=["frame:O", "kept:Q"],
        )
    )
    figures.show(chart, height=130)
    with st.popover("All frames", icon=":material/grid_view:"):
        st.image(overlay(run.shown, maps, columns=COLUMNS), width="stretch", alt="Every frame with its kept cells")


def stills(maps: Sequence[VisualMap]) -> list[VisualMap]:
    """Return the frames of all videos, each as the map of an image."""
    return [still(m, t) for m in maps for t in range(m.grid[0] if m.grid else 1)]


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

"""Charts that several tabs share. Colours are those of Okabe and Ito and viridis, readable on light and dark ground."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import altair as alt
import streamlit as st

from vlmopt.overlay import ACCENT

BLUE, ORANGE, GREEN, PURPLE, SKY, RED, GREY = (
    "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8A8F98",
)  # fmt: skip
FAINT = "#8A8F9866"
KEPT = "#{:02x}{:02x}{:02x}".format(*ACCENT)  # what was kept has one colour in charts and on images
SERIES = (BLUE, ORANGE, PURPLE, SKY, RED, GREY)  # no green: that is what was kept

Rows: TypeAlias = list[dict[str, Any]]
Chart: TypeAlias = alt.Chart | alt.LayerChart | alt.FacetChart


def show(chart: Chart, height: int = 280) -> None:
    """Show a chart as wide as the page, in its theme."""
    st.altair_chart(chart.properties(height=height), width="stretch")


def chart_of(rows: Rows) -> alt.Chart:
    return alt.Chart(alt.Data(values=rows))


def colours(names: Sequence[str], palette: Sequence[str] = SERIES) -> alt.Scale:
    """Return one colour per name, in their order."""
    return alt.Scale(domain=list(names), range=[palette[i % len(palette)] for i in range(len(names))])


def key(columns: int) -> alt.Legend:
    """Return a legend above the chart that can be read from where the chart can."""
    return alt.Legend(orient="top", columns=columns, labelLimit=180, labelFontSize=13, symbolSize=120)


def stacked(rows: Rows, x: alt.X, y: alt.Y, names: list[str], palette: Sequence[str] = SERIES) -> alt.Chart:
    """Draw bars of "amount" stacked by "part", `names` from the axis on."""
    order = {name: place for place, name in enumerate(names)}
    narrow = max(map(len, names)) > 12  # long names would be cut on a phone
    legend = key(columns=2 if narrow else 3)
    present = [name for name in names if any(row["part"] == name for row in rows)]
    inks = [palette[order[name] % len(palette)] for name in present]
    kinds = {key: "N" if isinstance(value, str) else "Q" for key, value in rows[0].items()}
    chart: alt.Chart = (
        chart_of([{**row, "order": order[row["part"]]} for row in rows])
        .mark_bar()
        .encode(
            x=x,
            y=y,
            color=alt.Color("part:N", title=None, scale=colours(present, inks), sort=present, legend=legend),
            order=alt.Order("order:Q"),
            tooltip=[f"{key}:{kind}" for key, kind in kinds.items()],
        )
    )
    return chart


def matrix(values: Sequence[Sequence[float]], title: str, top: float | None = None) -> alt.Chart:
    """Draw layers downwards, heads to the right; brighter is more, from 0 to `top` (None: the largest value)."""
    rows = [{"layer": i, "head": j, "value": v} for i, row in enumerate(values) for j, v in enumerate(row)]
    most = max((row["value"] for row in rows), default=1.0) if top is None else top
    scale = alt.Scale(scheme="viridis", domain=[0, most or 1.0])
    legend = alt.Legend(orient="top", title=title, gradientLength=160)
    chart: alt.Chart = (
        chart_of(rows)
        .mark_rect(stroke=GREY, strokeWidth=0.5)
        .encode(
            x=alt.X("head:O", title="head", axis=alt.Axis(labelAngle=0, labelOverlap=True)),
            y=alt.Y("layer:O", title="decoder layer", axis=alt.Axis(labelOverlap=True)),
            color=alt.Color("value:Q", scale=scale, legend=legend),
            tooltip=["layer:O", "head:O", alt.Tooltip("value:Q", title=title, format=".3f")],
        )
    )
    return chart

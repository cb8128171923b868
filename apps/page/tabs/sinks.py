"""Attention sinks: where they lie on the image, how long they last, and what redistribution takes from them."""

from __future__ import annotations

from typing import Any

import altair as alt
import streamlit as st

from vlmopt.analysis.cell_map import cell_map
from vlmopt.analysis.prompt_profile import KINDS, SinkLook, sink_look
from vlmopt.apps.page import figures
from vlmopt.apps.page.jobs import escaped
from vlmopt.apps.page.models import Progress
from vlmopt.apps.page.running import Worker, prepared
from vlmopt.apps.page.state import Request, Run

NAMES = dict(
    zip(KINDS, ("sinks in the image", "rest of the image", "sinks in the text", "rest of the text"), strict=True)
)
PALETTE = (figures.RED, figures.BLUE, figures.PURPLE, figures.GREY)
WHEN = ["before", "after"]


def show(run: Run, worker: Worker) -> None:
    st.caption(
        "Sinks are tokens that attract attention whatever they show. The map says where they lie, the bars how much "
        "attention they take, and, with visual_sink in the policy, what is left to them after redistribution."
    )
    found = worker.once(run, "sinks", "Look for sinks in this prompt", measure, run.request)
    if found is None:
        st.info("Press the button: a few passes of the prompt through the model, nothing is generated.")
        return
    st.markdown("**Attention of the text, by layer**")
    bars(found.masses)
    if found.masses and found.masses[0]["after"] is None:
        st.caption(
            "Without correction. To see what redistribution does, add **visual_sink** to the policy, with sink "
            "dimensions that are published, measured by `vlmopt calibrate`, or typed in."
        )
    sample = found.sinks.samples[0]
    if not sample["tokens"]:
        why = f" ({escaped(found.reason)})" if found.reason else ""
        st.info(
            f"No token of this prompt is a sink{why}. Small models such as the bundled ones have none; models of "
            "billions of parameters do. Dimensions given to **visual_sink** by hand are looked for as well."
        )
        return
    st.markdown("**Sinks by token**")
    maps = run.dense.report.maps()
    lifetimes = found.sinks.lifetimes(maps)
    left, right = st.columns(2, gap="large")
    with left:
        if any((~layers.isnan()).any() for layers in lifetimes):
            try:
                st.image(
                    cell_map(run.shown, maps, lifetimes, label="layers in which a token is a sink"), width="stretch"
                )
            except ValueError as error:
                st.info(f"No map: {escaped(str(error))}.")
        else:
            st.info("All sinks are text tokens, so there is nothing to draw on the image.")
    with right:
        st.dataframe(table(sample["tokens"]), hide_index=True, width="stretch")
    visual = sample["visual"]
    if visual is not None and visual["per_layer"]:
        counts = [{"layer": int(layer), "visual sinks": n} for layer, n in visual["per_layer"].items()]
        st.markdown("**Visual sinks by layer**")
        st.dataframe(counts, hide_index=True, width="stretch")
        if visual["overlap"] is not None:
            st.caption(
                f"{visual['overlap']:.0%} of them are like the first token; below half, the dimensions are in doubt."
            )


def bars(masses: list[dict[str, Any]]) -> None:
    """Draw shares per layer, with a second bar where something was corrected."""
    rows = [
        {"layer": entry["layer"], "when": when, "part": NAMES[kind], "amount": round(share, 4)}
        for entry in masses
        for when in WHEN
        if entry[when] is not None
        for kind, share in entry[when].items()
    ]
    x = alt.X("layer:O", title="decoder layer", axis=alt.Axis(labelAngle=0, labelOverlap=True))
    y = alt.Y("amount:Q", title="share of the attention", axis=alt.Axis(format="%"), scale=alt.Scale(domain=[0, 1]))
    chart = figures.stacked(rows, x, y, list(NAMES.values()), PALETTE)
    if any(row["when"] == "after" for row in rows):
        chart = chart.encode(xOffset=alt.XOffset("when:N", sort=WHEN))
        st.caption("Left bar of a pair: before redistribution; right bar: after.")
    figures.show(chart, height=320)


def table(tokens: list[dict[str, Any]]) -> figures.Rows:
    return [
        {
            "token": token["what"],
            "kind": token["kind"] or "visual sink",
            "visual sink, layers": token["visual_sink_layers"],
            "like the first, layers": token["lifetime"],
            "from": token["first_layer"] if token["lifetime"] else None,
        }
        for token in sorted(tokens, key=lambda t: (-t["lifetime"], -t["visual_sink_layers"], t["place"]))
    ]


def measure(model: Any, processor: Any, request: Request, progress: Progress) -> SinkLook:
    inputs = prepared(model, processor, request).inputs
    return sink_look(model, inputs, request.policy, tokenizer=processor.tokenizer, progress=progress)

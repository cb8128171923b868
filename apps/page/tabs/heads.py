"""Which attention heads look at the image: a matrix of layers and heads, measured on this prompt or beforehand."""

from __future__ import annotations

from typing import Any

import streamlit as st

from vlmopt.analysis.prompt_profile import HeadProfile, head_profile, profile_in
from vlmopt.apps.page import figures
from vlmopt.apps.page.models import Progress
from vlmopt.apps.page.running import Worker, prepared
from vlmopt.apps.page.state import Request, Run

GAIN = "gain in this run"
KINDS = {
    "visual mass": "Share of a head's attention, in text rows, that lies on the image.",
    "mass beside sinks": "The same without visual sinks: attention that is really on something.",
    "VHD": "Vision-aware head divergence: how far a head's output moves when the image is taken away.",
    "gain map": "What a head-wise boost would be scaled by: 0 up to the median head, 1 from the 90th percentile on.",
    GAIN: "The factor that a correction of this run really gave to each head.",
}


def show(run: Run, worker: Worker) -> None:
    st.caption(
        "How much every attention head looks at the image. Few heads do most of the looking; corrections such as "
        "vision_heads and head_gain make those count more."
    )
    given, gains = profile_in(run.request.policy), applied(run)
    measured = worker.once(run, "heads", "Measure the heads on this prompt", measure, run.request)
    sources = {"measured on this prompt": measured, "the policy's profile": given}
    known = {name: profile for name, profile in sources.items() if profile is not None}
    if not known and gains is None:
        st.info(
            "Press the button: a few passes of the prompt through the dense model. For a profile of many images run "
            "`vlmopt calibrate`; for gains that a run applied choose **vision_heads** (preset **describe**)."
        )
        return
    left, right = st.columns(2)
    kinds = [kind for kind in KINDS if (known if kind != GAIN else gains)]
    kind = left.selectbox("Show", kinds, key=f"heads-kind-{run.id}")
    if gains and kind == GAIN:
        draw(gains, kind)
        return
    source = right.selectbox("From", list(known), key=f"heads-source-{run.id}")
    profile = known[source]
    tables = {
        "visual mass": profile.visual_mass,
        "mass beside sinks": profile.nonsink_mass,
        "VHD": profile.divergence,
        "gain map": profile.gain_map().tolist(),
    }
    draw([list(row) for row in tables[kind]], kind)
    if gains is None:
        st.caption(
            "No correction of this run scaled heads, so there is no gain to show; **vision_heads** and head-wise "
            "boosts do."
        )
    if profile.samples == 1:
        st.caption("One prompt says little about a head: a profile averages over many (`vlmopt calibrate`).")


def draw(values: list[list[float]], kind: str) -> None:
    st.markdown(KINDS[kind])
    top = 1.0 if kind in ("visual mass", "mass beside sinks", "gain map") else None
    figures.show(figures.matrix(values, kind, top), height=max(360, 18 * len(values) + 180))


def measure(model: Any, processor: Any, request: Request, progress: Progress) -> HeadProfile:
    return head_profile(model, prepared(model, processor, request).inputs, progress)


def applied(run: Run) -> list[list[float]] | None:
    """Return factors by layer and head, 1 where a layer was left alone; None where no correction scales heads."""
    report = run.optimized.report
    found = {
        layer["layer"]: layer["gain"][0]
        for entry in report.corrections
        for layer in entry["layers"]
        if layer.get("gain")
    }
    if not found:
        return None
    return [found.get(layer, [1.0] * run.about.heads) for layer in range(len(report.key_lengths))]

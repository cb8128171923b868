"""Where the time went, dense against optimized, what was applied, and what was skipped and why."""

from __future__ import annotations

import altair as alt
import streamlit as st

import vlmopt
from vlmopt.apps.page import figures
from vlmopt.apps.page.running import Worker
from vlmopt.apps.page.state import Run

STAGES = ["vision", "scoring", "prefill", "decode", "other"]
VARIANTS = ["dense", "optimized"]


def show(run: Run, worker: Worker) -> None:
    st.caption(
        "Where the time of the last measured run went: the vision tower, choosing tokens (scoring), reading the prompt "
        "(prefill), writing the answer (decode). Scoring is what a method costs; it must save more than that."
    )
    both = {"dense": run.dense.report, "optimized": run.optimized.report}
    rows = [row for name, report in both.items() for row in parts(name, report)]
    y = alt.Y("variant:N", title=None, sort=VARIANTS)
    bars = figures.stacked(rows, alt.X("amount:Q", title="milliseconds"), y, STAGES)
    figures.show(bars, height=240)
    st.dataframe(numbers(run), hide_index=True, width="stretch")
    skipped = run.optimized.report.skipped
    if skipped:
        st.markdown("**Skipped, and why**")
        st.dataframe(skipped, hide_index=True, width="stretch")
    else:
        st.caption("Nothing of the policy was skipped.")
    for name, report in reversed(both.items()):
        with st.expander(f"The whole report, {name}", expanded=name == "optimized"):
            st.code(str(report), language=None)


def parts(variant: str, report: vlmopt.Report) -> figures.Rows:
    """Return milliseconds per stage; "other" is what the stages leave of the whole."""
    ms = {name: report.ms.get(name) or 0.0 for name in STAGES[:-1]}
    ms["other"] = max((report.ms["total"] or 0.0) - sum(ms.values()), 0.0)
    return [{"variant": variant, "part": name, "amount": round(value, 2)} for name, value in ms.items() if value]


def numbers(run: Run) -> figures.Rows:
    """Return the figures of both variants side by side, as text."""
    rows: dict[str, list[str]] = {}
    for outcome in (run.dense, run.optimized):
        report, found = outcome.report, outcome.measurement
        sample, speed, peak = report.samples[0], found.decode_tokens_per_s, found.peak_memory_bytes
        cells = {
            "tokens at the end": f"{sample['visual_tokens_kept']}",
            "tokens, layer mean": f"{sample['layer_average']:.1f}",
            "first token": f"{found.ttft_ms.median:.1f} ms",
            "scoring": "-" if report.ms["scoring"] is None else f"{report.ms['scoring']:.1f} ms",
            "decode": "-" if speed is None else f"{speed.median:.1f} tokens/s",
            "KV cache": f"{report.kv_cache_bytes / 2**10:.0f} KiB",
            "peak memory": "-" if peak is None else f"{peak / 2**20:.0f} MiB",
        }
        for name, cell in cells.items():
            rows.setdefault(name, []).append(cell)
    return [{"figure": name, "dense": a, "optimized": b} for name, (a, b) in rows.items()]

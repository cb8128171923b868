"""A page that shows what a model looks at, what was dropped, and what it cost: `streamlit run apps/demo.py`."""

from __future__ import annotations

import streamlit as st

from vlmopt.apps.page import ask, pins, results, takeaway
from vlmopt.apps.page.running import Worker
from vlmopt.apps.page.state import Run
from vlmopt.apps.page.style import STYLE
from vlmopt.apps.page.tabs import heads, layers, ledger, look, pareto, savings, scores, sinks, sparse

TABS = {
    "Scores": scores, "Layer by layer": layers, "Budget sweep": pareto, "Time and memory": ledger,
    "Attention sinks": sinks, "Attention heads": heads, "Sparse prefill": sparse, "Savings elsewhere": savings,
    "Second look": look,
}  # fmt: skip


def main() -> None:
    st.set_page_config("vlmopt demo", page_icon="🔍", layout="wide")  # a symbol would be fetched from elsewhere
    st.html(STYLE)
    st.markdown("**vlmopt**  :gray[See what a vision-language model looks at, what was dropped, and what it cost.]")
    session = ask.ask()
    run = ask.finished(session)
    if run is None:
        return
    results.figures(run)
    results.sides(run)
    results.facts(run)
    pins.show(session, run)
    tabs(looked_at(run))


def looked_at(run: Run) -> Run:
    """Ask which of two policies the tabs are about."""
    names = [name for name, _ in results.policies(run)]
    if len(names) == 1:
        return run
    chosen = st.segmented_control("The tabs look at", names, default=names[0], required=True, key=f"look-{run.id}")
    return run if chosen == names[0] else run.turned()


def tabs(run: Run) -> None:
    *shown, last = st.tabs([*TABS, "Take away"])
    for place, tab in zip(shown, TABS.values(), strict=True):
        with place:
            st.fragment(tab.show)(run, Worker(run.request.source))  # its widgets redraw nothing but itself
    with last:
        takeaway.show(run)


main()

"""A page that shows what a model looks at, what was dropped, and what it cost: `streamlit run apps/demo.py`."""

from __future__ import annotations

import streamlit as st

from vlmopt.apps.page import ask, results, takeaway, video
from vlmopt.apps.page.running import Worker
from vlmopt.apps.page.tabs import heads, layers, ledger, pareto, savings, scores, sinks, sparse

TABS = {
    "Scores": scores, "Layers": layers, "Sinks": sinks, "Heads": heads, "Sparse": sparse, "Ledger": ledger,
    "Pareto": pareto, "Savings": savings,
}  # fmt: skip


STYLE = """<style>.stMainBlockContainer {padding-top: 2.5rem} [data-testid=stSidebarHeader] {height: 2.5rem}
[data-testid=stButtonGroup] [role=radiogroup] {flex-wrap: wrap; row-gap: 0.25rem; mask-image: none}</style>"""


def main() -> None:
    st.set_page_config("vlmopt demo", page_icon=":material/visibility:", layout="wide")
    st.html(STYLE)
    st.markdown("## vlmopt\nSee what a vision-language model looks at, what was dropped, and what it cost.")
    policy = ask.sidebar()
    ask.question(policy)
    run = ask.finished()
    if run is None:
        return
    draw = results.images if run.request.clip is None else video.frames
    draw(run)
    results.answers(run)
    results.costs(run)
    *shown, last = st.tabs([*TABS, "Take away"])
    for place, tab in zip(shown, TABS.values(), strict=True):
        with place:
            st.fragment(tab.show)(run, Worker(run.request.source))  # its widgets redraw nothing but itself
    with last:
        takeaway.show(run)


main()

"""Pinned runs: kept beside those to come, each with its gains against its own dense runs."""

from __future__ import annotations

import streamlit as st

from vlmopt.apps.page.gains import gains
from vlmopt.apps.page.jobs import escaped
from vlmopt.apps.page.results import policies
from vlmopt.apps.page.session import PINNED, Session
from vlmopt.apps.page.state import Run

SHOWN = 60  # characters of a question or an answer


def show(session: Session, run: Run) -> None:
    """Draw the button that pins the run on the page, and the runs that are pinned."""
    pinned = any(one.id == run.id for one in session.pinned)
    line = st.container(horizontal=True, vertical_alignment="center")
    line.button(
        "Pin this run", key="pin", icon=":material/keep:", disabled=pinned, on_click=session.pin, args=(run,),
        help=f"Keep it here to compare with later ones; at most {PINNED}, the oldest goes first.",
    )  # fmt: skip
    line.caption("The address of this page finds its runs again after a reload, as long as the server runs.")
    if not session.pinned:
        return
    st.dataframe(
        [row for one in session.pinned for row in rows(one, one.id == run.id)], hide_index=True, width="stretch"
    )
    with st.container(horizontal=True):
        for number, one in enumerate(session.pinned, 1):
            with st.popover(f"Run {number}", disabled=session.working):
                st.markdown(f"{escaped(one.request.title)}: {escaped(one.request.question)}")
                st.button("Show it", key=f"show-{one.id}", on_click=session.show, args=(one,))
                st.button("Unpin it", key=f"unpin-{one.id}", on_click=session.unpin, args=(one,))


def rows(run: Run, current: bool) -> list[dict[str, str]]:
    """Return a row for each policy of a run."""
    found = []
    for name, outcome in policies(run):
        figures = {gain.label: gain.value for gain in gains(run.dense.measurement, outcome.measurement)}
        found.append(
            {
                "policy": name,
                "model": run.about.name,
                "image": run.request.title,
                "question": run.request.question[:SHOWN],
                **figures,
                "answer": outcome.text[:SHOWN],
                "dense answer": run.dense.text[:SHOWN],
                "on the page": "yes" if current else "",
            }
        )
    return found

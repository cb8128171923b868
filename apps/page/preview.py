"""A preview of other budgets: what the policy would keep, from what it read in this run, and a button that runs it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import streamlit as st

from vlmopt.analysis.ladder import at_ratio
from vlmopt.apps.page.form import filled
from vlmopt.apps.page.running import start
from vlmopt.apps.page.session import current
from vlmopt.apps.page.state import Run
from vlmopt.reporting import VisualMap


@dataclass(frozen=True)
class Preview:
    """Another budget and what would be kept at it."""

    ratio: float
    maps: Sequence[VisualMap]


def preview(run: Run) -> Preview | None:
    """Draw the slider; return what it shows where that is another budget than the run's."""
    if run.ladder is None:
        st.caption(
            "No preview of other budgets: this policy drops no tokens inside the model, or chooses in the vision tower."
        )
        return None
    at, key = run.ladder, f"preview-{run.id}"
    ratio = float(
        st.select_slider(
            "Preview another budget" + (" (a ceiling)" if at.adaptive else ""),
            at.ratios,
            value=at.own,
            key=key,
            format_func=lambda share: f"{100 * share:.0f} %" + (" · this run" if share == at.own else ""),
            help=f"What `{at.method}` before layer {at.layer} keeps of this prompt at other ratios: its own choice, "
            "from what it read in this run; cuts before that one stay as they were. Nothing is generated again.",
        )
    )
    if ratio == at.own:
        st.caption(f"Image and answers are both for {100 * at.own:.0f} %.")
        return None
    st.markdown(f":violet-badge[preview at {100 * ratio:.0f} %] Answers and figures are for {100 * at.own:.0f} %.")
    again = f"Run at {100 * ratio:.0f} %"
    if st.button(again, key=f"at-{run.id}", icon=":material/play_arrow:", on_click=run_at, args=(run, ratio)):
        st.rerun()
    return Preview(ratio, at.maps(run.optimized.report.maps(0), ratio))


def run_at(run: Run, ratio: float) -> None:
    """Ask the same at another budget; the form shows the policy that does it."""
    policy = at_ratio(run.request.policy, ratio)
    filled(policy)
    current().job = start(replace(run.request, policy=policy))

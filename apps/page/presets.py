"""Where a policy starts: presets by what they are for, each with a line about it, or a line of the user's own."""

from __future__ import annotations

from collections.abc import Callable

import streamlit as st

from vlmopt import catalogue
from vlmopt.apps.page.jobs import escaped
from vlmopt.choices import POLICY_LINE

LINE = "A line of your own"


def choice(chosen: Callable[[], None]) -> None:
    """Draw the groups and the presets of one; `chosen` is called when another one is chosen."""
    state, groups, presets = st.session_state, catalogue.groups(), catalogue.presets()
    state.setdefault("group", presets[catalogue.default()].group)

    def first() -> None:
        if state.group != LINE:
            state.preset = next(name for name, preset in presets.items() if preset.group == state.group)
        chosen()

    st.selectbox(
        "Start from",
        [*groups, LINE],
        key="group",
        format_func=lambda name: str(groups.get(name, name)).split(",")[0],  # the rest is cut off in a side bar
        on_change=first,
        help="Everything below can be changed.",
    )
    if state.group == LINE:
        st.text_input("Policy", key="line", placeholder="fastv:keep_ratio=0.1,layer=4", on_change=chosen,
                      help=f"{POLICY_LINE[0].upper()}{POLICY_LINE[1:]}, or a policy as JSON.")  # fmt: skip
        return
    names = [name for name, preset in presets.items() if preset.group == state.group]
    state.setdefault("preset", catalogue.default())
    st.radio(
        "Preset", names, key="preset", captions=[escaped(presets[name].summary) for name in names], on_change=chosen,
        label_visibility="collapsed",
    )  # fmt: skip


def line() -> str:
    """Return what was chosen, as `Policy.load` reads it; "" where a line is still to be typed."""
    state = st.session_state
    if state.get("group") == LINE:
        return str(state.get("line") or "").strip()
    return str(state.get("preset", catalogue.default()))

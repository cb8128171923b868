"""The side bar: which model, which policy, which other policy beside it, and how it is measured."""

from __future__ import annotations

import sys
from typing import Any

import streamlit as st

import vlmopt
from vlmopt import catalogue
from vlmopt.analysis.starting import depth_of
from vlmopt.apps.page.form import policy_form
from vlmopt.apps.page.jobs import escaped
from vlmopt.apps.page.state import Source
from vlmopt.checkpoints import bundled
from vlmopt.choices import DTYPES, POLICY_LINE

OTHER = "Directory or Hub id"
ALONE = "dense alone"
FIRST = "tiny-qwen"
REPEATS = 3
LOADED = ("scorer", "marker_from")  # settings of methods that name a checkpoint
NEW_TOKENS = {"answer": 32, "click": 32, "describe": 64}


def sidebar(task: str) -> tuple[vlmopt.Policy | None, vlmopt.Policy | None, bool]:
    """Draw everything; return the policy, the one beside it, and whether both can be used as they stand."""
    with st.sidebar:
        st.subheader("Model")
        model()
        st.subheader("Policy")
        policy = policy_form(depth_of(source().name))
        rival, valid = beside()
        st.subheader("Measuring")
        left, right = st.columns(2)
        st.session_state.setdefault(f"tokens-{task}", NEW_TOKENS[task])
        st.session_state.setdefault("repeats", REPEATS)
        left.number_input("New tokens", 1, 1024, key=f"tokens-{task}", help="At most so many.")
        right.number_input("Repeats", 1, 20, key="repeats", help="Measured runs of each variant, in turn.")
    return policy, rival, policy is not None and valid


def model() -> None:
    """Draw the choice of the model."""
    st.session_state.setdefault("model", FIRST)
    others = [] if bundled_only() else [OTHER]
    choice = st.selectbox("Model", [*bundled(), *others], key="model", label_visibility="collapsed")
    if choice != OTHER:
        st.caption("A test organism that comes with the package: it knows drawn images and buttons only.")
        return
    st.text_input("Directory or Hub id", key="model-name", placeholder="Qwen/Qwen2.5-VL-3B-Instruct")
    left, right = st.columns(2)
    left.selectbox("Device", ["auto", "cpu", "cuda"], key="device", accept_new_options=True)
    right.selectbox("dtype", DTYPES, key="dtype")


def bundled_only() -> bool:
    """Tell whether this server was told to load the checkpoints of the package alone."""
    return "--bundled-only" in sys.argv


def foreign(data: Any) -> str | None:
    """Return the first checkpoint that a policy's dict form names and the package does not have."""
    if isinstance(data, dict):
        for name, value in data.items():
            if name in LOADED and isinstance(value, str) and value not in bundled():
                return value
    parts = data.values() if isinstance(data, dict) else data if isinstance(data, (list, tuple)) else ()
    return next((found for part in parts if (found := foreign(part)) is not None), None)


def source() -> Source:
    """Return the model that the widgets name."""
    state = st.session_state
    if state.get("model", FIRST) != OTHER:
        return Source(state.get("model", FIRST))
    return Source(state.get("model-name", "").strip(), state.get("device", "auto"), state.get("dtype", "auto"))


def beside() -> tuple[vlmopt.Policy | None, bool]:
    """Draw the choice of a second policy; return it, None for none, and whether it can be read."""
    chosen = st.selectbox(
        "Side by side with",
        [ALONE, *catalogue.presets()],
        key="beside-policy",
        accept_new_options=True,
        help=f"A second policy, measured in turn with the first and with dense: a preset, or {POLICY_LINE}.",
    )
    if chosen == ALONE:
        return None, True
    try:
        return vlmopt.Policy.load(chosen, paths=False), True
    except (ValueError, TypeError) as error:
        st.error(escaped(str(error)), icon=":material/error:")
        return None, False

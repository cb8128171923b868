"""A second look: where the question makes the model look, and what it answers about that part alone."""

from __future__ import annotations

from typing import Any

import streamlit as st

from vlmopt import SecondLook, second_look
from vlmopt.apps.page.jobs import escaped
from vlmopt.apps.page.models import Progress
from vlmopt.apps.page.running import Worker, asked, units_of
from vlmopt.apps.page.state import Request, Run
from vlmopt.choices import LOOKS, REFINE
from vlmopt.looking.draw import draw

ABOUT = {
    "contrast": "upper middle layers, every token of the answer",
    "relative": "one layer, the first token of the answer, one window",
    "crop": "cut out and enlarged",
    "mask": "left in place, black around it",
}


def show(run: Run, worker: Worker) -> None:
    st.caption(
        "The question's attention is divided by that of a general instruction; what it looks at more is kept, and the "
        "question is asked again about that part, under this run's policy. **One image proves nothing**: small models "
        "saw objects at one size, and an enlarged part can mislead them."
    )
    if len(run.request.images) != 1:
        st.info("A second look is taken at one image; this run has a video or several images.")
        return
    left, right = st.columns(2)
    look = left.selectbox("Where to look", LOOKS, format_func=named, key=f"look-where-{run.id}")
    refine = right.selectbox("The part is", REFINE, index=1, format_func=named, key=f"look-part-{run.id}")
    found = worker.once(run, f"look-{look}-{refine}", "Look twice", measure, run.request, look, refine)
    if found is None:
        return
    st.image(draw(run.request.images[0], found), width="stretch", alt="Map of the look, the part kept, and its box")
    same = ":green-badge[same answer]" if found.answer == found.first_answer else ":orange-badge[differs]"
    st.markdown(f"**First answer** {escaped(found.first_answer)}  \n**Second answer** {escaped(found.answer)} {same}")
    if found.fallback is not None:
        st.info(f"The second look is at the whole image: {escaped(found.fallback)}.")
    st.caption(escaped(" ".join(found.budget().split()[1:])) + ".")


def named(name: str) -> str:
    return f"{name}: {ABOUT[name]}"


def measure(model: Any, processor: Any, request: Request, look: str, refine: str, progress: Progress) -> SecondLook:
    """Take a second look; the first answer is the unpruned model's."""
    progress(0.1, "Asking, and looking where the question looks")
    return second_look(
        model,
        processor,
        request.images[0],
        asked(request, units_of(model)),
        look=look,
        refine=refine,
        policy=request.policy,
        max_new_tokens=request.max_new_tokens,
    )

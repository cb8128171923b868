"""Image and question: from the widgets to a request, and the button that runs it."""

from __future__ import annotations

import streamlit as st

import vlmopt
from vlmopt.apps.page import inputs
from vlmopt.apps.page.form import filled
from vlmopt.apps.page.jobs import escaped, watched
from vlmopt.apps.page.running import start
from vlmopt.apps.page.session import Session, current
from vlmopt.apps.page.sidebar import NEW_TOKENS, bundled_only, foreign, sidebar, source
from vlmopt.apps.page.state import TASKS, Given, Request, Run
from vlmopt.checkpoints import bundled, check_name

UPLOAD = "Upload"
QUESTIONS = {"answer": "What is in the image?", "click": "Click Save.", "describe": "Describe the picture."}
# Widgets whose values a reload puts back; those of the policy's settings come from the policy itself.
KEYS = ("model", "model-name", "device", "dtype", "group", "preset", "line", "beside-policy", "image", "task",
        "question", "repeats", *(f"tokens-{task}" for task in NEW_TOKENS))  # fmt: skip


def remembered() -> Session:
    """Return the session, which the page's address names; fill the form as it was where the page was reloaded."""
    state, fresh = st.session_state, "session" not in st.session_state
    session = current()
    if fresh and session.form:
        state.update(session.form)
        if session.policy is not None:
            filled(session.policy)
    state.setdefault("image", inputs.SAMPLES[0].label)
    state.setdefault("task", inputs.SAMPLES[0].task)
    state.setdefault("question", inputs.SAMPLES[0].question)
    if st.query_params.get("session") != session.id:
        st.query_params["session"] = session.id
    return session


def ask() -> Session:
    """Draw everything that can be asked, and start the job when the button is pressed."""
    session = remembered()
    policy, rival, valid = sidebar(st.session_state.task)
    question(session, policy if valid else None, rival)
    session.form = {key: st.session_state[key] for key in KEYS if key in st.session_state}
    session.policy = policy
    return session


def fitting() -> None:
    """Choose the question and the task that go with a newly chosen sample; what is uploaded is described first."""
    state = st.session_state
    for chosen in inputs.SAMPLES:
        if chosen.label == state.get("image"):
            state.task, state.question = chosen.task, chosen.question
    own = {*(chosen.question for chosen in inputs.SAMPLES), *QUESTIONS.values(), ""}
    if state.get("image") == UPLOAD and state.get("question", "") in own:  # a question of the user's own stays
        state.task, state.question = "describe", QUESTIONS["describe"]


def question(session: Session, policy: vlmopt.Policy | None, rival: vlmopt.Policy | None) -> None:
    """Draw image, question and the button."""
    with st.container(border=True):
        left, right = st.columns(2, gap="medium")
        with left:
            given = chosen_input(session)
        with right:
            kind = str(st.segmented_control("Task", TASKS, required=True, key="task", format_func=str.capitalize))
            line = st.container(horizontal=True, vertical_alignment="bottom")
            words = line.text_input("Question", key="question", max_chars=2000, placeholder=QUESTIONS[kind])
            reason = missing(policy, given, words) or refused(policy, rival)
            pressed = line.button("Run", type="primary", icon=":material/play_arrow:", key="run",
                                  disabled=reason is not None or session.working)  # fmt: skip
            if reason is not None:
                st.caption(escaped(reason))
            if policy is not None and given is not None:
                request = Request(
                    source=source(),
                    policy=policy,
                    rival=rival,
                    question=words.strip(),
                    images=given.images,
                    clip=given.clip,
                    task=kind,
                    max_new_tokens=int(st.session_state[f"tokens-{kind}"]),
                    repeats=int(st.session_state.repeats),
                    title=given.title,
                )
                if pressed:
                    session.job = start(request)
                elif session.run is not None and not session.working and session.run.request != request:
                    st.caption(":orange[The settings have changed since the run below; press Run to see what they do.]")
            watch(session)


def chosen_input(session: Session) -> Given | None:
    """Draw the choice of an image, and the image itself unless the run below shows it."""
    labels = [chosen.label for chosen in inputs.SAMPLES]
    # Pills, which look well in two rows (the page's style lets them wrap); one row would hide the upload.
    wanted = st.pills("Image", [*labels, UPLOAD], required=True, key="image", on_change=fitting)
    given = inputs.uploaded(session) if wanted == UPLOAD else inputs.sample(labels.index(wanted or labels[0]))
    if given is None:
        return None
    if session.run is None or not shows(session.run, given):
        if given.images:
            st.image(given.images[0], width=220, alt="The chosen image")
        elif given.clip is not None:
            st.video(given.clip.path, muted=True, width=220)
    for note in given.notes:
        st.caption(f"Note: {escaped(note)}.")
    return given


def shows(run: Run, given: Given) -> bool:
    return (run.request.images, run.request.clip) == (given.images, given.clip)


def missing(policy: vlmopt.Policy | None, given: Given | None, words: str) -> str | None:
    """Return why nothing can run yet."""
    if policy is None:
        return "The policy cannot be used as it stands; see the sidebar."
    if given is None:
        return "Upload an image or a short video."
    if not words.strip():
        return "Type a question."
    if not source().name:
        return "Name a model in the sidebar."
    try:
        check_name(source().name)
    except ValueError as error:
        return str(error)
    return None


def refused(policy: vlmopt.Policy | None, rival: vlmopt.Policy | None) -> str | None:
    """Return why two policies make no comparison, or why this server runs less than others do."""
    if policy is not None and policy == rival:
        return "Both policies are the same; choose another one to stand beside the first."
    if not bundled_only():
        return None
    named = [found for one in (policy, rival) if one is not None and (found := foreign(one.to_dict()))]
    named += [source().name] if source().name not in bundled() else []
    return f"This page loads the bundled checkpoints alone, not {named[0]}." if named else None


def watch(session: Session) -> None:
    """Show the progress of a running job, or what became of one that ended."""
    job = session.job
    if job is None:
        return
    if not job.done.is_set():
        watched(job, "run")
        return
    session.job = None
    if job.error is None:
        session.show(job.result)
    else:
        session.failed = job.error
    st.rerun()


def finished(session: Session) -> Run | None:
    """Return the run on the page; show first what went wrong with the last one."""
    if session.failed:
        st.error(escaped(session.failed), icon=":material/error:")
    return session.run

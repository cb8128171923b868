"""Model, policy, image and question: from the widgets to a request, and the button that runs it."""

from __future__ import annotations

import streamlit as st

import vlmopt
from vlmopt.analysis.starting import depth_of
from vlmopt.apps.page import inputs
from vlmopt.apps.page.form import policy_form
from vlmopt.apps.page.jobs import Job, escaped, watched
from vlmopt.apps.page.running import start
from vlmopt.apps.page.state import TASKS, Request, Run, Source
from vlmopt.checkpoints import bundled, check_name
from vlmopt.choices import DTYPES

OTHER = "Directory or Hub id"
UPLOAD = "Upload"
QUESTIONS = {"answer": "What is in the image?", "click": "Click Save.", "describe": "Describe the picture."}
NEW_TOKENS = {"answer": 32, "click": 32, "describe": 64}


def sidebar() -> vlmopt.Policy | None:
    """Draw model and policy; return the policy, or None where it is not valid yet."""
    with st.sidebar:
        st.subheader("Model")
        known = bundled()
        choice = st.selectbox("Model", [*known, OTHER], index=known.index("tiny-qwen"), key="model",
                              label_visibility="collapsed")  # fmt: skip
        if choice == OTHER:
            st.text_input("Directory or Hub id", key="model-name", placeholder="Qwen/Qwen2.5-VL-3B-Instruct")
            left, right = st.columns(2)
            left.selectbox("Device", ["auto", "cpu", "cuda"], key="device", accept_new_options=True)
            right.selectbox("dtype", DTYPES, key="dtype")
        else:
            st.caption("A test organism that comes with the package: it knows drawn images and buttons only.")
        st.subheader("Policy")
        policy = policy_form(depth_of(source().name))
        st.subheader("Measuring")
        left, right = st.columns(2)
        left.number_input("New tokens", 1, 1024, NEW_TOKENS[task()], key=f"tokens-{task()}", help="At most so many.")
        right.number_input("Repeats", 1, 20, 3, key="repeats", help="Measured runs of each variant, in turn.")
    return policy


def source() -> Source:
    """Return the model that the widgets name."""
    state = st.session_state
    if state.get("model", "tiny-qwen") != OTHER:
        return Source(state.get("model", "tiny-qwen"))
    return Source(state.get("model-name", "").strip(), state.get("device", "auto"), state.get("dtype", "auto"))


def task() -> str:
    """Return what the answer is used for, as far as it was chosen."""
    return str(st.session_state.get("task") or inputs.SAMPLES[0].task)


def fitting() -> None:
    """Choose the question and the task that go with a newly chosen sample."""
    for chosen in inputs.SAMPLES:
        if chosen.label == st.session_state.get("image"):
            st.session_state.task, st.session_state.question = chosen.task, chosen.question


def question(policy: vlmopt.Policy | None) -> None:
    """Draw image, question and the button; start the job when it is pressed."""
    with st.container(border=True):
        left, right = st.columns(2, gap="medium")
        with left:
            labels = [chosen.label for chosen in inputs.SAMPLES]
            # Pills, which look well in two rows (demo.STYLE lets them wrap); one row would hide the upload.
            wanted = st.pills("Image", [*labels, UPLOAD], default=labels[0], required=True, key="image",
                              on_change=fitting)  # fmt: skip
            given = inputs.uploaded() if wanted == UPLOAD else inputs.sample(labels.index(wanted or labels[0]))
            if given is not None and given.images:
                st.image(given.images[0], width=220, alt="The chosen image")
            elif given is not None and given.clip is not None:
                st.video(given.clip.path, muted=True, width=220)
            for note in given.notes if given is not None else ():
                st.caption(f"Note: {escaped(note)}.")
        with right:
            st.session_state.setdefault("task", inputs.SAMPLES[0].task)
            st.session_state.setdefault("question", inputs.SAMPLES[0].question)
            kind = str(st.segmented_control("Task", TASKS, required=True, key="task", format_func=str.capitalize))
            words = st.text_input("Question", key="question", max_chars=2000, placeholder=QUESTIONS[kind])
            reason = missing(policy, given, words)
            pressed = st.button("Run", type="primary", icon=":material/play_arrow:", key="run",
                                disabled=reason is not None or working())  # fmt: skip
            if reason is not None:
                st.caption(escaped(reason))
            if policy is not None and given is not None:
                request = Request(
                    source=source(),
                    policy=policy,
                    question=words.strip(),
                    images=given.images,
                    clip=given.clip,
                    task=kind,
                    max_new_tokens=int(st.session_state[f"tokens-{kind}"]),
                    repeats=int(st.session_state.repeats),
                    title=given.title,
                )
                if pressed:
                    st.session_state.job = start(request)
                else:
                    changed(request)
            watch()


def changed(request: Request) -> None:
    """Say so if the run on the page was asked something else."""
    run = st.session_state.get("run_done")
    if isinstance(run, Run) and not working() and run.request != request:
        st.caption(":orange[The settings have changed since the run below; press Run to see what they do.]")


def missing(policy: vlmopt.Policy | None, given: inputs.Given | None, words: str) -> str | None:
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


def working() -> bool:
    job = st.session_state.get("job")
    return isinstance(job, Job) and not job.done.is_set()


def watch() -> None:
    """Show the progress of a running job, or what became of one that ended."""
    job = st.session_state.get("job")
    if not isinstance(job, Job):
        return
    if not job.done.is_set():
        watched(job, "run")
        return
    st.session_state.job = None
    if job.error is None:
        st.session_state.run_done, st.session_state.failed = job.result, None
    else:
        st.session_state.failed = job.error
    st.rerun()


def finished() -> Run | None:
    """Return the run on the page; show first what went wrong with the last one."""
    if failed := st.session_state.get("failed"):
        st.error(escaped(failed), icon=":material/error:")
    run = st.session_state.get("run_done")
    return run if isinstance(run, Run) else None

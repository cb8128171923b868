"""Work in a thread of its own that the page watches: progress, a button to stop, and errors as sentences."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable
from typing import Any

import streamlit as st
import torch

LOOK = 0.5  # seconds between two looks at the progress
SPECIAL = re.compile(r"[\\`*_{}\[\]()<>#+\-.!|~$:^=\"'&]")  # whatever Markdown or Streamlit's directives may read
log = logging.getLogger(__name__)


class Stopped(Exception):
    """Raised where the user pressed Stop."""


class Job:
    """A function that runs in a thread; it is given `progress(fraction, text)`, which raises `Stopped` when asked to.

    Nothing in it touches Streamlit, whose calls belong to the session's own thread.
    """

    def __init__(self, work: Callable[[Callable[[float, str], None]], Any]) -> None:
        self.fraction, self.text = 0.0, "Starting"
        self.stop, self.done = threading.Event(), threading.Event()
        self.result: Any = None
        self.error: str | None = None
        self.thread = threading.Thread(target=self._run, args=(work,), daemon=True)
        self.thread.start()

    def progress(self, fraction: float, text: str) -> None:
        if self.stop.is_set():
            raise Stopped
        self.fraction, self.text = min(max(fraction, 0.0), 1.0), text

    def _run(self, work: Callable[[Callable[[float, str], None]], Any]) -> None:
        try:
            self.result = work(self.progress)
        except Stopped:
            self.error = "Stopped."
        except Exception as error:  # whatever a model raises belongs on the page as a sentence, and into the log whole
            self.error = sentence(error)
            log.info("a job failed", exc_info=True)
        finally:
            self.done.set()


def sentence(error: BaseException) -> str:
    """Return what to tell people; the traceback goes to the log."""
    said = " ".join(str(error).split())
    if isinstance(error, torch.OutOfMemoryError):
        return f"Out of memory: {said.split('. ')[0]}. Choose a smaller image, another dtype, or the CPU."
    if isinstance(error, (ValueError, OSError)) or (isinstance(error, TypeError) and ": " in said):
        return said or type(error).__name__
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


@st.fragment(run_every=LOOK)
def watched(job: Job, key: str) -> None:
    """Show progress and a button to stop; draw the whole page again when the job is done."""
    if job.done.is_set():
        st.rerun()
    st.progress(job.fraction, text=escaped(job.text))
    if st.button("Stop", key=f"stop-{key}", icon=":material/stop_circle:", disabled=job.stop.is_set()):
        job.stop.set()
        st.caption("Stopping after the token that is being computed.")


def escaped(text: str) -> str:
    """Write text of a user, a file or a model as Markdown that shows it letter by letter."""
    return SPECIAL.sub(r"\\\g<0>", " ".join(text.split()))


def told(text: str) -> str:
    """Write a docstring or help text as Markdown: letter by letter, but what stands between backticks stays code."""
    parts = text.split("`")
    return "".join(f"`{part}`" if i % 2 else SPECIAL.sub(r"\\\g<0>", part) for i, part in enumerate(parts))

"""What a browser session asked and found out, kept on the server, where a reload of the page finds it again."""

from __future__ import annotations

import secrets
import tempfile
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import streamlit as st

import vlmopt
from vlmopt.apps.page.jobs import Job
from vlmopt.apps.page.state import Given, Run

KEPT = 32  # sessions that a reload can find; the one that was looked at longest ago goes first
PINNED = 6  # runs of a session


@dataclass
class Session:
    """One browser session. Its id stands in the page's address and cannot be guessed: who has it sees the results."""

    id: str = field(default_factory=lambda: secrets.token_urlsafe(12))
    job: Job | None = None  # the run that is being made
    run: Run | None = None  # the run on the page
    failed: str | None = None  # why the last one is not there
    pinned: list[Run] = field(default_factory=list)
    computed: dict[str, Job] = field(default_factory=dict)  # what tabs compute, by run and name
    given: Given | None = None  # what was uploaded
    form: dict[str, Any] = field(default_factory=dict)  # values of the widgets by key, as they were drawn last
    policy: vlmopt.Policy | None = None  # of the form
    home: tempfile.TemporaryDirectory[str] | None = None

    @property
    def folder(self) -> Path:
        """A folder of this session alone, removed when nothing holds the session any more."""
        if self.home is None:
            self.home = tempfile.TemporaryDirectory(prefix="vlmopt-demo-")
        return Path(self.home.name)

    @property
    def working(self) -> bool:
        return self.job is not None and not self.job.done.is_set()

    def show(self, run: Run) -> None:
        """Put a run on the page; what tabs computed of runs that are gone goes, too."""
        self.run, self.failed = run, None
        alive = tuple(one.id for one in (run, *self.pinned))
        self.computed = {name: job for name, job in self.computed.items() if name.startswith(alive)}

    def pin(self, run: Run) -> None:
        """Keep a run beside those to come; of more than `PINNED` the oldest goes."""
        self.unpin(run)
        self.pinned = [*self.pinned, run][-PINNED:]

    def unpin(self, run: Run) -> None:
        self.pinned = [other for other in self.pinned if other.id != run.id]


class Sessions:
    """The sessions that a reload can find."""

    def __init__(self) -> None:
        self.lock, self.known = threading.Lock(), OrderedDict[str, Session]()

    def find(self, name: str) -> Session | None:
        with self.lock:
            if name in self.known:
                self.known.move_to_end(name)
            return self.known.get(name)

    def add(self, session: Session) -> Session:
        with self.lock:
            self.known[session.id] = session
            while len(self.known) > KEPT:
                self.known.popitem(last=False)
        return session


@st.cache_resource(show_spinner=False)
def sessions() -> Sessions:
    """Return the one register of this server."""
    return Sessions()


def current() -> Session:
    """Return the session of this browser page: that of its address, as long as the server has it, else a new one."""
    if "session" not in st.session_state:
        found = sessions().find(st.query_params.get("session", ""))
        st.session_state.session = found or sessions().add(Session())
    session: Session = st.session_state.session
    return session

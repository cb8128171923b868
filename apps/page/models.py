"""Loaded models: kept for all browser sessions, each with a lock, so that one piece of work at a time runs on it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import streamlit as st

from vlmopt.apps.page.state import Source
from vlmopt.loading import Loaded, load

KEPT = 2  # models in memory at a time; the one that was used longest ago goes first
WAIT = 0.2  # seconds between looks at the stop button while another session works

Progress = Callable[[float, str], None]


@dataclass
class Held:
    """One model, loaded when it is first needed, by whoever needs it."""

    source: Source
    lock: threading.Lock = field(default_factory=threading.Lock)
    loaded: Loaded | None = None

    @contextmanager
    def alone(self, progress: Progress) -> Iterator[Loaded]:
        """Give the model to one thread at a time; whoever waits can be stopped (`progress` raises)."""
        while not self.lock.acquire(timeout=WAIT):
            progress(0.0, "Waiting: another session is using this model")
        try:
            if self.loaded is None:
                progress(0.0, f"Loading {self.source.name}")
                with loading():
                    self.loaded = load(self.source.name, device=self.source.device, dtype=self.source.dtype)
            yield self.loaded
        finally:
            self.lock.release()


@st.cache_resource(max_entries=KEPT, show_spinner=False)
def held(source: Source) -> Held:
    """Return the one holder of a model in this server; load nothing yet."""
    return Held(source)


@st.cache_resource(show_spinner=False)
def loading() -> threading.Lock:
    """Return the lock under which models are loaded one after the other.

    transformers sets process-wide switches while it loads.
    """
    return threading.Lock()

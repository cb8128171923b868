"""Find out whether the Hub answers, before something that cannot be hurried waits for it."""

from __future__ import annotations

import threading
from typing import Any

WAIT = 3.0  # seconds; transformers alone asks several times, and for minutes where nothing answers at all


def reached() -> bool:
    """Tell whether the Hub answers within `WAIT` seconds, whatever it answers."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session  # type: ignore[attr-defined]

    answered = threading.Event()

    def ask() -> None:
        try:
            get_session().head(constants.ENDPOINT, timeout=WAIT)
        except Exception:  # whatever the client in use raises where it cannot connect, or may not
            return
        answered.set()

    # In a thread: looking up a name in a network that is cut off knows no time limit.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(WAIT)
    return answered.is_set()


def download() -> dict[str, Any]:
    """Return what `from_pretrained` is to be told: nothing, or to look at local files alone."""
    return {} if reached() else {"local_files_only": True}

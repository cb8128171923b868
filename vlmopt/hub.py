"""Find out whether the Hub answers, before something that cannot be hurried waits for it."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

WAIT = 3.0  # seconds; transformers alone asks several times, and for minutes where nothing answers at all
# What says how files are had, not what is made of them; `from_pretrained` of models and of processors take it alike.
OPTIONS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "token")


def reached(endpoint: str | None = None) -> bool:
    """Tell whether the Hub, or another endpoint, answers within `WAIT` seconds, whatever it answers."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session  # type: ignore[attr-defined]

    answered = threading.Event()

    def ask() -> None:
        try:
            get_session().head(endpoint or constants.ENDPOINT, timeout=WAIT)
        except Exception:  # whatever the client in use raises where it cannot connect, or may not
            return
        answered.set()

    # In a thread: looking up a name in a network that is cut off knows no time limit.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(WAIT)
    return answered.is_set()


def download(**said: Any) -> dict[str, Any]:
    """Return what `from_pretrained` and `hf_hub_download` are to be told: to look at local files alone, if need be.

    Args:
        said: what they are told already. Whoever says `local_files_only` or `proxies` has decided how the Hub is asked.
    """
    if "local_files_only" in said or said.get("proxies") or reached(said.get("endpoint")):
        return said
    return {**said, "local_files_only": True}


def reason(error: Exception, options: Mapping[str, Any]) -> str:
    """Say in one line why something cannot be had, given what `download` returned."""
    if options.get("local_files_only") and isinstance(error, OSError):
        return "the Hub cannot be reached, or is not to be asked, and its local cache does not have it"
    return " ".join(str(error).split())

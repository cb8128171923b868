"""The nearest known name, for error messages."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

LONGEST = 100  # characters of a name that may be a slip of the pen


def near(name: str, names: Iterable[str]) -> str:
    """Return " (did you mean 'uniform'?)" for a name that resembles a known one, in whatever case, or nothing."""
    known = {one.casefold(): one for one in names}
    close = get_close_matches(name.casefold(), known, n=2, cutoff=0.5) if len(name) <= LONGEST else []
    return f" (did you mean {' or '.join(repr(known[one]) for one in close)}?)" if close else ""

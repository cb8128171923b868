"""How long a search may take: whether another look of the race still fits, decided once for all processes."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field

from ..atomic import atomic_write
from ..evaluation.saved import saved
from .asking import Asked, questions
from .search import Search

AGAIN = "delete it, and what fits into the minutes is judged again"


@dataclass(kw_only=True)
class Pace:
    """Say before every later look whether it still fits into the minutes, together with the confirmation.

    What was allowed once stays allowed: a search that goes on repeats its looks, and more minutes only add some.
    """

    search: Search
    racing: Asked
    started: float = field(default_factory=time.monotonic)

    def __call__(self, candidates: int, count: int) -> bool:
        """Return whether so many candidates may be shown `count` images."""
        minutes = self.search.wanted.minutes
        if minutes is None:
            return True
        path, team = self.search.settings.source.run / "pace.json", self.search.team
        if team.main:
            known = saved(path, dict, AGAIN)
            if not known.get(str(count)):
                known[str(count)] = time.monotonic() - self.started + self.seconds(candidates, count) <= 60 * minutes
                with atomic_write(path) as fresh:
                    fresh.write_text(json.dumps(known) + "\n", encoding="utf-8")
        team.wait()
        fits = bool(saved(path, dict, AGAIN)[str(count)])
        team.wait()
        return fits

    def seconds(self, candidates: int, count: int) -> float:
        """Return how long a look and the confirmation will take at the pace so far."""
        racing = self.racing
        before = max((look for look in racing.looks if look < count), default=0)
        look = (candidates + 1) * questions(racing.images[before:count])
        return (look + racing.later) * racing.seconds / max(racing.answers, 1)

"""What the plot of a search shows: cost and change of dense, the finalists, the front, and the controls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..evaluation.report.draw import Scene
from ..evaluation.report.facts import Axis, Figure, Metric, Place
from ..evaluation.report.plots import tradeoff
from .rules import DENSE
from .space import CONTROLS

CHANGES = {
    "selected_on": Metric("change", "Change, search part", "points", 1),
    "holdout": Metric("change", "Change, hold-out", "points", 1),
}
TITLES = {
    "ttft": "Time to the first token",
    "total": "Time of the whole answer",
    "throughput": "Time per new token",
    "kv_bytes": "Keys and values of the prompt",
    "peak_memory": "Peak memory",
    "tokens": "Visual tokens, mean over the layers",
}


@dataclass(frozen=True)
class Front:
    """Candidates by name, as `tune.json` has them, and which part of the data is shown."""

    entries: Mapping[str, Mapping[str, Any]]
    part: str = "selected_on"

    @classmethod
    def of(cls, facts: Mapping[str, Any], front: Sequence[Mapping[str, Any]]) -> Front:
        """Choose what is shown: finalists, the front, and of every control what costs most nearly the same."""
        known = {one["policy"]: one for one in facts["tried"] if one["cost"] and one["selected_on"]}
        aim = known[facts["policy"]]["cost"]["ratio"] if facts["policy"] in known else 0.5
        names = [name for name in facts["finalists"] if name in known]
        names += [one["policy"] for one in front if one["policy"] not in names]
        for control in CONTROLS:
            own = [name for name in known if name.partition(":")[0] == control]
            if own and not any(name in names for name in own):
                names.append(min(own, key=lambda name: (abs(known[name]["cost"]["ratio"] - aim), name)))
        return cls({name: {**known[name], "style": number} for number, name in enumerate(names, start=1)})

    def confirmed(self) -> Front:
        """Return those that were tested, on the hold-out."""
        return Front({name: one for name, one in self.entries.items() if one["holdout"]}, "holdout")

    @property
    def policies(self) -> list[str]:
        return [DENSE, *self.entries]

    def place(self, policy: str, axis: Axis) -> Place | None:
        if policy == DENSE:
            return Place(100.0, 100.0, 100.0)
        cost = self.entries[policy]["cost"]
        return Place(100 * cost["ratio"], 100 * cost["low"], 100 * cost["high"])

    def figure(self, policy: str, metric: Metric) -> Figure | None:
        if policy == DENSE:
            return Figure(0.0, 0.0, 0.0, 0)
        seen = self.entries[policy][self.part]
        return Figure(seen["difference"], seen["low"], seen["high"], seen["images"])

    def style(self, policy: str) -> int:
        return 0 if policy == DENSE else self.entries[policy]["style"]


def drawn(front: Front, objective: str, size: tuple[float, float]) -> Scene:
    """Draw the change from dense over the cost."""
    title = TITLES[objective]
    return tradeoff(front, CHANGES[front.part], Axis(objective, "", f"{title}, share of dense", "%"), size)

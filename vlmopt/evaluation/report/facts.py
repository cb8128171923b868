"""What a report tells, read from a run directory: figures in the units that people read, and the order of things."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ..figures import CERTAIN
from ..records import DENSE, FORMAT, Record, read
from ..saved import saved_environment
from .numbers import number

# Metric -> title, unit. Fractions are shown in percent, in the order of this table.
TITLES = {
    "accuracy": ("Accuracy", "%"),
    "f1": ("F1", "%"),
    "precision": ("Precision", "%"),
    "recall": ("Recall", "%"),
    "yes_ratio": ("Share of “yes”", "%"),
    "anls": ("ANLS", "%"),
    "judged": ("Judged right", "%"),
    "chair_s": ("CHAIR, captions", "%"),
    "chair_i": ("CHAIR, objects", "%"),
    "chair_unique_i": ("CHAIR, objects once", "%"),
    "chair_recall": ("Objects found", "%"),
    "chair_precision": ("Objects that are there", "%"),
    "chair_f1": ("F1 of objects", "%"),
    "agreement": ("Agreement with dense", "%"),
    "length": ("Length", "words"),
    "distinct_1": ("Different words", "%"),
    "distinct_4": ("Different runs of 4 words", "%"),
    "repeated": ("Answers that repeat themselves", "%"),
    "unended": ("Answers without an end", "%"),
    "cut_off": ("Answers cut off", "%"),
    "unparsable": ("Unreadable answers", "%"),
}
# Metrics with plots and with a table per category.
HEADLINES = ("accuracy", "f1", "anls", "judged", "chair_s", "chair_i", "chair_recall", "agreement")


LEVEL = 0.05  # of the paired test; a bootstrap alone is too sure of itself where images are few


class Metric(NamedTuple):
    """A figure of merit. `better`: 1 where more is better, -1 where less is, 0 where neither is."""

    name: str
    title: str
    unit: str
    better: int

    @property
    def full(self) -> str:
        """The title with the unit."""
        return f"{self.title}, {self.unit}" if self.unit else self.title

    @property
    def scale(self) -> float:
        return 100.0 if self.unit == "%" else 1.0

    @property
    def direction(self) -> str:
        return {1: "more is better", -1: "less is better", 0: "neither more nor less is better"}[self.better]


class Figure(NamedTuple):
    """A value in its unit with its interval and the interval's name; of a difference from dense `p` (Holm's)."""

    value: float
    low: float
    high: float
    n: int
    p: float | None = None
    interval: str = ""
    images: int = 0  # how many have a share in it

    @property
    def ends(self) -> str:
        """The interval; "" where there is none, for a figure that follows from its definition."""
        return "" if self.interval == CERTAIN else f"{number(self.low)} to {number(self.high)}"

    def reading(self, better: int) -> str:
        """Describe a difference in words; only what the interval and the test agree on is called one."""
        if not better:
            return ""
        if self.low <= 0 <= self.high or (self.p is not None and self.p >= LEVEL):
            return "no clear difference"
        return "better" if self.value * better > 0 else "worse"


class Place(NamedTuple):
    """Where a policy lies on an axis, with the spread over batches where there is one."""

    value: float
    low: float
    high: float


class Axis(NamedTuple):
    """What accuracy is paid with: `part` and `name` say where the summary has it."""

    name: str
    part: str
    title: str
    unit: str


AXES = (
    Axis("layer_average", "tokens", "Visual tokens, mean over the layers", "%"),
    Axis("kept", "tokens", "Visual tokens after the last cut", "%"),
    Axis("ttft_ms", "latency", "Time to the first token", "ms"),
    Axis("total_ms", "latency", "Time of the whole answer", "ms"),
)


@dataclass(frozen=True)
class Facts:
    """A run directory as the report sees it."""

    run: Path
    summary: Mapping[str, Any]
    environment: Mapping[str, Any]
    records: Sequence[Record]

    @classmethod
    def load(cls, run: Path) -> Facts:
        """Read a run directory.

        Raises:
            ValueError: no summary.json there, or one of another version.
        """
        path = run / "summary.json"
        if not path.exists():
            raise ValueError(f"{run} has no summary.json: give the directory of a run, as in vlmopt eval --report DIR")
        summary = json.loads(path.read_text(encoding="utf-8"))
        if summary.get("format") != FORMAT:
            raise ValueError(f"{path} has format {summary.get('format')}, this version reads {FORMAT}")
        return cls(run, summary, saved_environment(run), sorted(read(run), key=lambda record: record.index))

    @property
    def policies(self) -> list[str]:
        return list(self.summary["policies"])

    @property
    def asked(self) -> str:
        """How many samples there are, and how many images they are about."""
        images = self.summary.get("pictures", len({record.picture for record in self.records}))
        return f"{self.summary['samples']} samples about {images} image{'' if images == 1 else 's'}"

    @property
    def title(self) -> str:
        return f"{self.summary['model']} on {' '.join(Path(name).name for name in self.summary['data'])}"

    @property
    def metrics(self) -> list[Metric]:
        """Everything that this run measured; the headline first."""
        found = {name for one in self.summary["policies"].values() for name in one["metrics"]}
        if any(one["agreement_with_dense"] for one in self.summary["policies"].values()):
            found.add("agreement")
        known = [*(name for name in TITLES if name in found), *sorted(found - set(TITLES))]
        first = self.summary["primary"]
        return [metric_of(name, self.summary) for name in sorted(known, key=lambda name: name != first)]

    @property
    def headlines(self) -> list[Metric]:
        """Those with plots; something is always among them if anything was measured."""
        metrics = self.metrics
        return [metric for metric in metrics if metric.name in HEADLINES] or metrics[:1]

    @property
    def categories(self) -> list[str]:
        return list(dict.fromkeys(name for one in self.summary["policies"].values() for name in one["by_category"]))

    def figure(self, policy: str, metric: Metric, category: str | None = None) -> Figure | None:
        if metric.name == "agreement":
            found = self.summary["policies"][policy]["agreement_with_dense"] if category is None else None
        else:
            found = self._part(policy, category).get("metrics", {}).get(metric.name)
        return None if found is None else figure_of(found, "value", metric)

    def difference(self, policy: str, metric: Metric, category: str | None = None) -> Figure | None:
        """Return the difference from dense, on the samples that both answered; None for dense itself."""
        found = self._part(policy, category).get("versus_dense", {}).get(metric.name)
        return None if found is None else figure_of(found, "difference", metric)

    def place(self, policy: str, axis: Axis) -> Place | None:
        one = self.summary["policies"][policy]
        found, whole = one[axis.part][axis.name], one["tokens"]["visual"] if axis.unit == "%" else 100.0
        if found is None or not whole:
            return None
        if isinstance(found, dict):
            return Place(found["median"], found["p20"], found["p80"])
        share = 100 * found / whole
        return Place(share, share, share)

    def kept_share(self, policy: str) -> float | None:
        """Return the percentage of the visual tokens."""
        tokens = self.summary["policies"][policy]["tokens"]
        return 100 * tokens["kept"] / tokens["visual"] if tokens["kept"] is not None and tokens["visual"] else None

    def speedup(self, policy: str, name: str = "ttft_ms") -> float | None:
        """Return how many times as fast as dense."""
        own, dense = (self.summary["policies"][one]["latency"][name] for one in (policy, DENSE))
        return dense["median"] / own["median"] if own and dense and own["median"] else None

    def style(self, policy: str) -> int:
        """Return the number of a policy's colour and marker, one for a whole line; dense is 0."""
        return list(dict.fromkeys(map(self.line, self.policies))).index(self.line(policy))

    @property
    def lines(self) -> dict[str, list[str]]:
        """The lines of a sweep, ratios rising, then the other policies, a line each; empty where nothing was swept."""
        found: dict[str, list[str]] = {}
        for policy in sorted(self.policies, key=lambda name: self._swept.get(name, ("", math.inf))[1]):
            found.setdefault(self.line(policy), []).append(policy)
        found.pop(DENSE, None)
        order = [line for line in dict.fromkeys(map(self.line, self.policies)) if line in found]
        return {line: found[line] for line in order} if self._swept else {}

    def line(self, policy: str) -> str:
        """Return the line that a policy is a point of; its own name outside a sweep."""
        return str(self._swept.get(policy, (policy,))[0])

    @property
    def _swept(self) -> Mapping[str, Sequence[Any]]:
        swept: Mapping[str, Sequence[Any]] = self.summary.get("lines", {})
        return swept

    def _part(self, policy: str, category: str | None) -> Mapping[str, Any]:
        one: Mapping[str, Any] = self.summary["policies"][policy]
        return one if category is None else one["by_category"].get(category, {})


def metric_of(name: str, summary: Mapping[str, Any]) -> Metric:
    """Return a metric as people read it; `summary` says of which less, or nothing, is better."""
    title, unit = TITLES.get(name, (name.replace("_", " "), ""))
    better = -1 if name in summary["less"] else 0 if name in summary["neutral"] else 1
    return Metric(name, title, unit, better)


def figure_of(found: Mapping[str, Any], name: str, metric: Metric) -> Figure:
    """Return an entry of a summary in the metric's unit; `name` is that of its value."""
    value, low, high = (metric.scale * found[part] for part in (name, "low", "high"))
    p = found.get("p_holm", found.get("p"))  # runs that were summed up before have p alone
    return Figure(value, low, high, found["n"], p, found.get("interval", ""), found.get("pictures", 0))

"""Other budgets on the same image: what fewer tokens cost in agreement, and what they save in time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import streamlit as st
import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from vlmopt.analysis.sweep import DENSE, SweepPoint, contenders, front, sweep
from vlmopt.apps.page import curves, figures
from vlmopt.apps.page.marks import Mark, mark_of
from vlmopt.apps.page.models import Progress
from vlmopt.apps.page.running import Stopped, Worker, place, prepared
from vlmopt.apps.page.session import current
from vlmopt.apps.page.state import Request, Run
from vlmopt.evaluation.report.svg import svg
from vlmopt.metrics.clicks import Point

RATIOS = [0.05, 0.1, 0.15, 0.25, 0.35, 0.5, 0.75]
FIRST = [0.1, 0.25, 0.5]
REPEATS = 3  # runs of each point, of which the medians count
SHAPES = ["circle", "square", "triangle-up", "diamond", "cross", "triangle-down"]
DASHES = {"random": [5, 4], "uniform": [2, 3]}  # the controls: grey and dashed
GREYS = {DENSE: figures.GREY, "random": figures.GREY, "uniform": figures.GREY}


@dataclass(frozen=True)
class Swept:
    """Points with their answers, and how many were asked for."""

    points: list[SweepPoint]
    answers: list[str]  # untrusted: a model wrote them
    off: list[float | None]  # pixels between each click and the dense one; None where one of both names no point
    wanted: int
    mark: str = ""  # how answers were marked
    about: str = ""  # the same in a sentence


def show(run: Run, worker: Worker) -> None:
    st.caption(
        "The pruning method of this run at other keep ratios, against the controls, random and even choice: how far "
        "the answer agrees with the dense one, and how long it takes. **One image proves nothing**: `vlmopt eval` asks "
        "hundreds."
    )
    methods = contenders(run.request.policy)
    if not run.request.policy.prune:
        st.info(
            "This policy prunes nothing, so only the controls are swept. Choose **attention-25** to compare a method."
        )
    ratios = st.multiselect(
        "Keep ratios", RATIOS, default=FIRST, format_func=lambda r: f"{r:.0%}", key=f"pareto-{run.id}"
    )
    if not ratios:
        st.info("Choose at least one keep ratio.")
        return
    count = 1 + len(ratios) * len(methods)
    key = f"pareto-{'-'.join(f'{ratio:g}' for ratio in sorted(ratios))}"
    label = f"Run {count} variants, {REPEATS} times each"
    found = worker.once(run, key, label, measure, run.request, methods, tuple(ratios))
    if found is None:
        return
    if found.wanted > len(found.points):
        st.warning(f"Stopped after {len(found.points)} of {found.wanted} variants.")
    if not found.points:
        st.info("Stopped before the dense answer was there, so there is nothing to compare with.")
    else:
        charts(found)
        exports(run, found)
    if st.button("Run again", key=f"again-{run.id}"):
        current().computed.pop(f"{run.id}-{key}", None)
        st.rerun()


def charts(found: Swept) -> None:
    best, clicks = front(found.points), found.off[0] is not None
    rows = [
        {
            "method": point.name,
            "kept": point.kept_share,
            "agreement": point.agreement,
            "first token, ms": point.ttft_ms,
            "whole answer, ms": point.total_ms,
            "on the front": point in best,
            **({"click off, px": off} if clicks else {}),
            "answer": answer,
        }
        for point, answer, off in zip(found.points, found.answers, found.off, strict=True)
    ]
    names = list(dict.fromkeys(point.name for point in found.points))
    left, right = st.columns(2, gap="large")
    with left:
        st.markdown("**Agreement with the dense answer**")
        figures.show(lines(rows, names, "agreement", True), height=330)
        st.caption(
            f"{found.about} Filled points are on the Pareto front: no other keeps as few and agrees as well; controls "
            "are grey and dashed."
        )
    with right:
        st.markdown("**Time to the first token, ms**")
        figures.show(lines(rows, names, "first token, ms", False), height=330)
        least, most = (end(point.repeats for point in found.points) for end in (min, max))
        runs = f"{most}" if least == most else f"{least} to {most}"
        st.caption(
            f"Medians of {runs} runs of each, in turn; on a busy machine times scatter more than methods differ."
        )
    percent = st.column_config.NumberColumn(format="percent")
    ms = st.column_config.NumberColumn(format="%.0f")
    config = {"kept": percent, "agreement": percent}
    config |= dict.fromkeys(("first token, ms", "whole answer, ms", "click off, px"), ms)
    st.dataframe(rows, hide_index=True, width="stretch", column_config=config)


def exports(run: Run, found: Swept) -> None:
    """Offer the points as CSV and the curves as SVG."""
    title = f"{run.about.name}: {run.request.question}"[:70]
    files = {
        "CSV": ("sweep.csv", "text/csv", curves.table(found.points, found.answers, found.off, found.mark)),
        "SVG": ("sweep.svg", "image/svg+xml", svg(curves.drawing(found.points, title))),
    }
    with st.container(horizontal=True):
        for label, (name, kind, content) in files.items():
            st.download_button(label, content, name, kind, key=f"sweep-{label}-{run.id}", on_click="ignore",
                               icon=":material/download:")  # fmt: skip


def lines(rows: figures.Rows, names: list[str], y: str, share: bool) -> figures.Chart:
    """Draw one line and shape per method over the share of tokens kept; hollow off the front where `y` is a share."""
    plain = iter(figures.SERIES)
    scale = alt.Scale(domain=names, range=[GREYS.get(name) or next(plain) for name in names])
    dashes = alt.Scale(domain=names, range=[DASHES.get(name, [1, 0]) for name in names])
    percent, form = alt.Axis(format="%"), ".1%" if share else ".0f"
    up = {"axis": percent, "scale": alt.Scale(domain=[0, 1.05])} if share else {"scale": alt.Scale(zero=True)}
    legend = figures.key(columns=2)
    base = figures.chart_of(rows).encode(
        x=alt.X("kept:Q", title="visual tokens kept", axis=percent, scale=alt.Scale(domain=[0, 1.03])),
        y=alt.Y(f"{y}:Q", title=None, **up),
        color=alt.Color("method:N", title=None, sort=names, scale=scale, legend=legend),
        tooltip=["method:N", alt.Tooltip("kept:Q", format=".1%"), alt.Tooltip(f"{y}:Q", format=form), "answer:N"],
    )
    shapes = alt.Scale(domain=names, range=[SHAPES[i % len(SHAPES)] for i in range(len(names))])
    points = base.mark_point(filled=True, size=90, strokeWidth=2, strokeOpacity=1, opacity=1).encode(
        shape=alt.Shape("method:N", title=None, sort=names, scale=shapes, legend=legend),
        stroke=alt.Stroke("method:N", scale=scale, legend=None),
        fillOpacity=alt.condition("datum['on the front']", alt.value(1), alt.value(0)) if share else alt.value(1),
    )
    line = base.mark_line(strokeWidth=2).encode(strokeDash=alt.StrokeDash("method:N", scale=dashes, legend=None))
    return alt.layer(line, points)


def measure(
    model: Any,
    processor: Any,
    request: Request,
    methods: dict[str, Any],
    ratios: tuple[float, ...],
    progress: Progress,
) -> Swept:
    """Run the sweep; what was done before Stop was pressed stays."""
    prompt, beat = prepared(model, processor, request), Beat(progress)

    def said(ids: Sequence[int]) -> str:
        return str(processor.tokenizer.decode(list(ids), skip_special_tokens=True)).strip()

    def click(ids: Sequence[int]) -> Point | None:
        return place(model, request, prompt, said(ids))

    size = request.images[0].size if request.images else (1, 1)

    def mark(dense: Sequence[int]) -> Mark:
        return mark_of(request.task, size, click(dense), click, said)

    points = sweep(
        model,
        prompt.inputs,
        methods,
        ratios,
        max_new_tokens=request.max_new_tokens,
        repeats=REPEATS,
        seed=request.policy.seed,
        generate={"stopping_criteria": StoppingCriteriaList([beat])},
        agree=lambda ids, dense: mark(dense).agree(ids, dense),
        progress=beat.tell,
        stop=lambda: beat.stopped,
    )
    clicks = [click(point.ids) for point in points]
    off = [math.dist(one, clicks[0]) if one is not None and clicks[0] is not None else None for one in clicks]
    answers, marked = [said(point.ids) for point in points], mark(points[0].ids if points else ())
    return Swept(points, answers, off, 1 + len(methods) * len(ratios), marked.name, marked.about)


class Beat(StoppingCriteria):
    """End generation when the user presses Stop, so that what is already measured can be shown."""

    def __init__(self, progress: Progress) -> None:
        self.progress, self.at, self.stopped = progress, (0.0, ""), False

    def tell(self, done: int, wanted: int, text: str) -> None:
        self.at = done / wanted, f"Run {done + 1} of {wanted}: {text}"
        self.beat()

    def beat(self) -> None:
        try:
            self.progress(*self.at)
        except Stopped:
            self.stopped = True

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        self.beat()
        return torch.full((input_ids.shape[0],), self.stopped, dtype=torch.bool, device=input_ids.device)

"""What a run gives to a paper: the main figure as PDF, SVG and PNG, all figures as CSV, and a table in LaTeX."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from typing import Any

from .curves import costs
from .draw import Scene, png
from .facts import AXES, Facts
from .pdf import pdf
from .plots import DRAWING, stages
from .svg import svg

COLUMNS = (
    "policy", "method", "ratio", "metric", "value", "low", "high", "interval", "questions", "images",
    "difference", "difference_low", "difference_high", "p", "p_holm",
    "visual_tokens", "tokens_after_last_cut", "tokens_mean_over_layers", "first_token_ms", "answer_ms",
)  # fmt: skip


def drawings(facts: Facts) -> dict[str, Scene]:
    """Return what is saved beside the report: the headline metric against tokens and time, and the stages."""
    drawn = {}
    if facts.headlines:
        metric = facts.headlines[0]
        for axis, name in ((AXES[0], "tokens"), (AXES[1], "last-cut"), (AXES[2], "first-token")):
            drawn[f"{metric.name}-versus-{name}".replace("_", "-")] = costs(facts, metric, axis, DRAWING)
    return drawn | {
        "stages-first-token": stages(facts, whole=False, width=DRAWING[0]),
        "stages-answer": stages(facts, whole=True, width=DRAWING[0]),
    }


def pictures(facts: Facts) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of every drawing in every form."""
    for name, scene in drawings(facts).items():
        yield f"{name}.png", png(scene)
        yield f"{name}.svg", svg(scene).encode()
        yield f"{name}.pdf", pdf(scene)


def table(facts: Facts) -> str:
    """Write every figure as CSV, a row per policy and metric; fractions as fractions, times in ms."""
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for policy, one in facts.summary["policies"].items():
        agreement = one["agreement_with_dense"]
        for metric, found in {**one["metrics"], **({"agreement": agreement} if agreement else {})}.items():
            writer.writerow(
                {**place(facts, policy, one), **figures(metric, found, one["versus_dense"].get(metric, {}))}
            )
    return out.getvalue()


def place(facts: Facts, policy: str, one: Mapping[str, Any]) -> dict[str, Any]:
    line, ratio = facts.summary.get("lines", {}).get(policy, (policy, None))
    tokens, latency = one["tokens"], one["latency"]
    return {
        "policy": policy,
        "method": line,
        "ratio": ratio,
        "visual_tokens": tokens["visual"],
        "tokens_after_last_cut": tokens["kept"],
        "tokens_mean_over_layers": tokens["layer_average"],
        "first_token_ms": latency["ttft_ms"] and latency["ttft_ms"]["median"],
        "answer_ms": latency["total_ms"] and latency["total_ms"]["median"],
    }


def figures(metric: str, found: Mapping[str, Any], versus: Mapping[str, Any]) -> dict[str, Any]:
    own = {name: found[name] for name in ("value", "low", "high", "interval")}
    other = {"difference": versus.get("difference"), "p": versus.get("p"), "p_holm": versus.get("p_holm")}
    ends = {f"difference_{end}": versus.get(end) for end in ("low", "high")}
    return {"metric": metric, **own, "questions": found["n"], "images": found["pictures"], **other, **ends}

"""Tables of the page. The first cell of every row is its header; wide ones scroll inside their frame."""

from __future__ import annotations

from collections.abc import Sequence

from ..records import DENSE
from .draw import Dot, Scene, svg
from .facts import Facts, Figure, Metric, count, milliseconds, number, probability
from .markup import Markup, join, tag
from .palette import look

ERRORS = 200  # rows of the table of errors


def table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]], css: str = "") -> Markup:
    """Rows of cells; the first of each heads its row."""
    body = [tag("tr", tag("th", row[0], scope="row"), *(tag("td", c) for c in row[1:])) for row in rows]
    made = tag(
        "table",
        tag("caption", caption),
        tag("thead", tag("tr", *(tag("th", name, scope="col") for name in head))),
        tag("tbody", *body),
        css=css or None,
    )
    return tag("div", made, css="frame", role="region", tabindex="0", aria_label=caption)


def marker(facts: Facts, policy: str) -> Markup:
    """The marker of a policy in the plots, and its name."""
    ink, shape = look(facts.style(policy))
    drawn = svg(Scene(16, 16, "", marks=[Dot(x=8, y=8, ink=ink, shape=shape)]))
    return tag("span", tag("span", drawn, css="marker"), policy, css="policy")


def value(figure: Figure | None) -> Markup:
    """A figure, its interval below."""
    if figure is None:
        return tag("span", "–", css="none")
    return join(tag("b", number(figure.value)), tag("small", figure.ends) if figure.ends else None)


def change(difference: Figure | None, metric: Metric, *, brief: bool = False) -> Markup | None:
    """A difference from dense; its colour repeats what the words say. A brief one is silent where nothing is clear."""
    if difference is None:
        return None
    reading = difference.reading(metric.better)
    css = {"better": "good", "worse": "bad"}.get(reading, "even")
    ends = f"{number(difference.low, sign=True)} to {number(difference.high, sign=True)}"
    p = probability(difference.p)
    moved = number(difference.value, sign=True)
    if brief and css == "even":
        return tag("small", f"{moved} ({ends})", css="change")
    words = ", ".join(filter(None, (reading, p)))
    return tag("span", tag("b", moved), tag("small", ends), tag("small", words), css=f"change {css}")


def overview(facts: Facts) -> Markup:
    """A row per policy: tokens, the headline metric, latency, memory, errors."""
    metric = facts.headlines[0] if facts.headlines else None
    head = ["Policy", "Visual tokens kept"]
    if metric:
        head += [f"{metric.title}{f', {metric.unit}' if metric.unit else ''}", "Change from dense"]
    agrees = next((m for m in facts.metrics if m.name == "agreement"), None)
    if agrees and metric != agrees:
        head.append("Same answer as dense, %")
    head += ["First token, ms", "Whole answer, ms", "Decode, tokens/s", "Peak memory, MiB", "Errors"]
    rows = []
    for policy in facts.policies:
        one = facts.summary["policies"][policy]
        latency, share = one["latency"], facts.kept_share(policy)
        part = tag("small", f"{count(share)} % of {count(one['tokens']['visual'])}") if share is not None else None
        row: list[str] = [marker(facts, policy), join(tag("b", count(one["tokens"]["kept"])), part)]
        if metric:
            reference = tag("span", "reference", css="none") if policy == DENSE else None
            row.append(value(facts.figure(policy, metric)))
            row.append(change(facts.difference(policy, metric), metric) or reference or "–")
        if agrees and metric != agrees:
            row.append(value(facts.figure(policy, agrees)))
        row += [join(spread(latency[name]), faster(facts, policy, name)) for name in ("ttft_ms", "total_ms")]
        row += [spread(latency["decode_tokens_per_s"]), memory(latency["peak_memory_bytes"])]
        row.append(tag("span", f"{one['errors']} of {one['n']}", css="bad" if one["errors"] else "none"))
        rows.append(row)
    return table("Every policy on the same samples", head, rows)


def faster(facts: Facts, policy: str, name: str) -> Markup | None:
    times = facts.speedup(policy, name)
    return None if times is None or policy == DENSE else tag("small", f"{number(times, 2)} × as fast")


def spread(found: dict[str, float] | None) -> Markup:
    if found is None:
        return tag("span", "–", css="none")
    ends = f"{milliseconds(found['p20'])} to {milliseconds(found['p80'])}"
    return join(tag("b", milliseconds(found["median"])), tag("small", ends))


def memory(size: int | None) -> str:
    return number(None if size is None else size / 2**20, 0)


def categories(facts: Facts, metric: Metric) -> Markup | None:
    """A row per category, a column per policy."""
    rows: list[list[str]] = []
    for name in facts.categories:
        found = [facts.figure(policy, metric, name) for policy in facts.policies]
        if any(found):
            changes = [change(facts.difference(policy, metric, name), metric, brief=True) for policy in facts.policies]
            cells = [join(value(own), moved) for own, moved in zip(found, changes, strict=True)]
            rows.append([name, number(max(one.n for one in found if one), 0), *cells])
    if not rows:
        return None
    unit = f", {metric.unit}" if metric.unit else ""
    head = ["Category", "Samples", *(marker(facts, policy) for policy in facts.policies)]
    return table(f"{metric.title}{unit} per category, with the change from dense", head, rows, "categories")


def everything(facts: Facts) -> Markup:
    """A row per metric, a column per policy."""
    rows: list[list[str]] = []
    for metric in facts.metrics:
        cells = [
            join(value(facts.figure(policy, metric)), change(facts.difference(policy, metric), metric, brief=True))
            for policy in facts.policies
        ]
        unit = f", {metric.unit}" if metric.unit else ""
        rows.append([join(metric.title + unit, tag("small", metric.direction)), *cells])
    splits = {policy: facts.summary["policies"][policy]["mean_of_splits"] or {} for policy in facts.policies}
    for name in dict.fromkeys(name for own in splits.values() for name in own):
        title = f"Mean of the splits: {name.replace('_', ' ')}, %"
        means = (100 * own[name] if name in own else None for own in splits.values())
        rows.append([title, *(number(mean) for mean in means)])
    head = ["Metric", *(marker(facts, policy) for policy in facts.policies)]
    return table("All metrics, with 95 % intervals and the change from dense", head, rows, "categories")


def errors(facts: Facts) -> Markup:
    """What has no answer, and why."""
    failed = [record for record in facts.records if record.error]
    if not failed:
        return tag("p", "None: every sample was asked and answered.")
    asked = [record for record in failed if record.policy in facts.policies]
    rows = [[record.id, record.policy, record.category or "–", tag("code", record.error)] for record in asked[:ERRORS]]
    shown = "" if len(asked) <= ERRORS else f" (the first {ERRORS} are shown)"
    note = (
        f"{len(asked)} answers are missing{shown}. A policy that fails on a sound sample is marked wrong there; "
        "a sample that cannot be asked at all is marked for no policy."
    )
    return join(tag("p", note), table("Errors", ["Sample", "Policy", "Category", "Why"], rows, "errors"))

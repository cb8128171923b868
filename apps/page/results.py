"""The main page of a run: the image, what was kept of it, both answers, and what they cost."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import streamlit as st
from PIL import Image

from vlmopt.apps.page.jobs import escaped
from vlmopt.apps.page.state import Outcome, Run
from vlmopt.measure import Measurement, Spread
from vlmopt.overlay import GAP, overlay
from vlmopt.reporting import VisualMap
from vlmopt.ring import ring

LEGEND = 48 + GAP  # pixels below an overlay
METRIC = 120  # pixels of a figure: six in a row, two on a telephone
SIDE = 672  # pixels of an image on the page
DENSE, OPTIMIZED = (31, 111, 196), (204, 78, 0)  # of the click points: blue and vermilion, apart for everyone
PIECES = re.compile(r"\s+|[^\s]+")


@st.fragment
def images(run: Run) -> None:
    """Draw both images; the slider redraws them alone."""
    maps = run.optimized.report.maps(0)
    left, right = st.columns(2, gap="medium")
    with left:
        st.markdown("##### The image")
        st.image(original(run), width="stretch", alt="The image as it was given")
        if run.request.task == "click":
            st.caption(clicked(run))
    with right:
        st.markdown("##### What the model keeps")
        place = st.empty()
        ratio = retention(run)
        if run.ladder is not None and ratio is not None and ratio != run.ladder.own:
            maps = run.ladder.maps(maps, ratio)
        place.image(kept(run, maps), width="stretch", alt="Kept cells clear, dropped cells dark")
        count, total = sum(int(m.kept.sum()) for m in maps), sum(len(m.kept) for m in maps)
        st.caption(f"**{count} of {total}** visual tokens: clear with a green outline. Dropped: dark and hatched.")


def retention(run: Run) -> float | None:
    """Draw the slider; return None where the policy has nothing to slide."""
    if run.ladder is None:
        st.caption(
            "Nothing to slide: this policy drops no tokens inside the model, or its choice is made in the vision tower."
        )
        return None
    at = run.ladder
    ratio = st.select_slider(
        "Retention" + (" (ceiling)" if at.adaptive else ""),
        at.ratios,
        value=at.own,
        key=f"retention-{run.id}",
        format_func=lambda share: f"{100 * share:.0f} %" + (" · this run" if share == at.own else ""),
        help=f"What `{at.method}` before layer {at.layer} keeps of this prompt at other ratios: its own choice, from "
        "what it read in this run; cuts before that one stay as they were. Nothing is generated again; the answers "
        "below are those of this run.",
    )
    return float(ratio)


def original(run: Run) -> Image.Image:
    """Return the image as it was given, with both clicks."""
    first = (run.request.images or run.shown)[0]
    image = first.convert("RGB").resize((SIDE, max(1, round(first.height * SIDE / first.width))))
    for outcome, colour, radius in ((run.dense, DENSE, 26), (run.optimized, OPTIMIZED, 17)):
        if outcome.point is not None:
            x, y = (part * SIDE / first.width for part in outcome.point)
            ring(image, x, y, colour, radius)
    return image


def clicked(run: Run) -> str:
    """Return where both answers click."""
    first = (run.request.images or run.shown)[0]

    def place(outcome: Outcome) -> str:
        if outcome.point is None:
            return "nowhere"
        x, y = outcome.point
        beside = "" if 0 <= x <= first.width and 0 <= y <= first.height else ", beside the image"
        return f"({x:.0f}, {y:.0f}{beside})"

    return f"Clicks: :blue[◎ dense {place(run.dense)}] and :orange[◉ optimized {place(run.optimized)}], in pixels."


def kept(run: Run, maps: Sequence[VisualMap]) -> Image.Image:
    """Return the overlay without its margin and legend, which the page has in words."""
    if not maps:
        return original(run)
    drawn = overlay(run.shown, maps)
    return drawn.crop((GAP, GAP, drawn.width - GAP, drawn.height - LEGEND))


def answers(run: Run) -> None:
    """Show both answers side by side; words that the other does not have there are marked."""
    same = run.dense.text == run.optimized.text
    sides = zip(st.columns(2, gap="medium"), ("Dense", "Optimized"), (run.dense, run.optimized), strict=True)
    for column, name, outcome in sides:
        other = run.optimized if outcome is run.dense else run.dense
        with column, st.container(border=True):
            badge = ":green-badge[same answer]" if same else ":orange-badge[differs]"
            st.markdown(f"**{name}**" + (f" {badge}" if name == "Optimized" else ""))
            st.markdown("".join(marked(other.text, outcome.text)) or ":gray[(an empty answer)]")


def marked(before: str, after: str) -> Iterator[str]:
    """Yield pieces of the second text as Markdown, on a coloured ground where the first differs."""
    old, new = PIECES.findall(before), PIECES.findall(after)
    for what, _, _, start, end in difflib.SequenceMatcher(a=old, b=new, autojunk=False).get_opcodes():
        piece = escaped("".join(new[start:end]))
        if piece:
            lead = " " if start else ""
            yield f"{lead}:orange-background[{piece}]" if what != "equal" else f"{lead}{piece}"


def costs(run: Run) -> None:
    """Show a line of figures with their change against dense."""
    dense, ours = run.dense.measurement, run.optimized.measurement
    rows: list[tuple[str, Callable[[Measurement], float | None], str, Literal["normal", "inverse", "off"], str]] = [
        ("Visual tokens", lambda m: m.visual_tokens_kept, "{:.0f}", "inverse", "Left after the last cut."),
        ("Mean per layer", layer_average, "{:.0f}", "inverse", "Visual tokens that a decoder layer sees on average."),
        ("First token, ms", lambda m: middle(m.ttft_ms), "{:.0f}", "inverse", "From the start, with the vision tower."),
        ("Tokens per s", lambda m: middle(m.decode_tokens_per_s), "{:.0f}", "normal", "After the first one."),
        ("KV cache, KiB", lambda m: m.report.kv_cache_bytes / 2**10, "{:.0f}", "inverse", "Keys and values stored."),
        ("Memory, MiB", memory, "{:.0f}", "inverse", f"Peak: {ours.peak_memory_kind}."),
    ]
    row = st.container(horizontal=True)
    for name, read, form, colour, about in rows:
        before, after = read(dense), read(ours)
        value = "–" if after is None else form.format(after)
        change = None if not before or after is None else f"{100 * (after / before - 1):+.0f} %"
        colour = colour if change not in ("+0 %", "-0 %") else "off"
        row.metric(name, value, change, delta_color=colour, help=about, width=METRIC)
    repeats = run.request.repeats
    st.caption(
        f"{escaped(run.about.name)} · {run.about.parameters / 1e6:.1f} M parameters · {ours.report.dtype} · "
        f"{ours.report.device} · {ours.report.attn_implementation} · changes are against dense, "
        + ("one measured run each" if repeats == 1 else f"medians of {repeats} runs in turn")
        + ". A single image shows how a method works, not how good it is."
    )


def middle(spread: Spread | None) -> float | None:
    return None if spread is None else spread.median


def layer_average(measured: Measurement) -> float:
    return float(measured.report.samples[0]["layer_average"])


def memory(measured: Measurement) -> float | None:
    return None if measured.peak_memory_bytes is None else measured.peak_memory_bytes / 2**20

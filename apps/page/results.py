"""The main page of a run: figures, then every variant's answer above what it saw, and a preview of other budgets."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator, Sequence

import streamlit as st
from PIL import Image

import vlmopt
from vlmopt.apps.page import video
from vlmopt.apps.page.gains import gains
from vlmopt.apps.page.jobs import escaped
from vlmopt.apps.page.preview import Preview, preview
from vlmopt.apps.page.state import Outcome, Run
from vlmopt.overlay import GAP, overlay
from vlmopt.policy.text import summary
from vlmopt.reporting import VisualMap
from vlmopt.ring import ring

LEGEND = 48 + GAP  # pixels below an overlay
SIDE = 672  # pixels of an image on the page
DENSE, OPTIMIZED = (31, 111, 196), (204, 78, 0)  # of the click points: blue and vermilion, apart for everyone
PIECES = re.compile(r"\s+|[^\s]+")
UNITS = {
    "pixels": "pixels of the image",
    "resized": "pixels of the image as the processor resizes it",
    "unit": "fractions of the image, 0 to 1",
    "hundred": "per cent of the image",
    "thousand": "thousandths of the image, 0 to 1000",
    "loc": "location tokens, 1024 along each side",
}


def figures(run: Run) -> None:
    """Show what each policy gains, a figure beside the other."""
    for number, (name, outcome) in enumerate(policies(run)):
        row = st.container(horizontal=True, key=f"gains-{number}")
        if run.rival is not None:
            row.metric("Against dense", escaped(name), help=escaped(name))
        for gain in gains(run.dense.measurement, outcome.measurement):
            row.metric(gain.label, gain.value, gain.detail, delta_color=gain.colour, delta_arrow="off", help=gain.about)


def policies(run: Run) -> list[tuple[str, Outcome]]:
    """Return the outcomes that are not dense, by what their policies are called."""
    found = [(named(run.request.policy), run.optimized)]
    if run.rival is not None and run.request.rival is not None:
        found.append((named(run.request.rival), run.rival))
    return found


def named(policy: vlmopt.Policy) -> str:
    """Return the preset that a policy is, or the policy in one line."""
    known = (name for name, preset in vlmopt.presets().items() if preset == policy)
    return next(known, None) or summary(policy.to_dict())


@st.fragment
def sides(run: Run) -> None:
    """Show answers and images side by side; the sliders redraw this alone."""
    row = st.container(horizontal=True, key="sides")
    first, *cells, beside = (row.container() for _ in range(2 + len(policies(run))))
    maps = [outcome.report.maps(0) for _, outcome in policies(run)]
    with beside:
        shown = preview(run)
        if shown is not None:
            maps[0] = list(shown.maps)
        frame = video.chosen(run, maps[0])
        legend(run, maps)
        if run.request.task == "click":
            st.caption(clicked(run))
    with first:
        heading("Dense")
        answer(None, run.dense.text)
        st.image(original(run, run.dense, DENSE, frame), width="stretch", alt="The image as it was given")
    for number, (cell, (name, outcome)) in enumerate(zip(cells, policies(run), strict=True)):
        with cell:
            heading(name, run.dense.text == outcome.text, None if number else shown)
            answer(run.dense.text, outcome.text)
            drawn = kept(run, outcome, maps[number], frame)
            st.image(drawn, width="stretch", alt="Kept cells clear, dropped cells dark")


def heading(name: str, same: bool | None = None, shown: Preview | None = None) -> None:
    """Name a variant, and say how its answer compares and whether its image is one of another budget."""
    words = [f"**{escaped(name)}**"]
    if same is not None:
        words.append(":green-badge[same answer]" if same else ":orange-badge[another answer]")
    if shown is not None:
        words.append(f":violet-badge[image: preview at {100 * shown.ratio:.0f} %]")
    st.markdown(" ".join(words))


def answer(dense: str | None, text: str) -> None:
    """Show an answer; words that the dense one does not have there are marked."""
    with st.container(border=True):
        st.markdown("".join(marked(text if dense is None else dense, text)) or ":gray[(an empty answer)]")


def marked(before: str, after: str) -> Iterator[str]:
    """Yield pieces of the second text as Markdown, on a coloured ground where the first differs."""
    old, new = PIECES.findall(before), PIECES.findall(after)
    for what, _, _, start, end in difflib.SequenceMatcher(a=old, b=new, autojunk=False).get_opcodes():
        piece = escaped("".join(new[start:end]))
        if piece:
            lead = " " if start else ""
            yield f"{lead}:orange-background[{piece}]" if what != "equal" else f"{lead}{piece}"


def legend(run: Run, maps: Sequence[Sequence[VisualMap]]) -> None:
    """Say in words what the images of the policies show."""
    said = []
    for (name, _), own in zip(policies(run), maps, strict=True):
        count, total = sum(int(m.kept.sum()) for m in own), sum(len(m.kept) for m in own)
        said.append(f"**{count} of {total}**" + (f" ({escaped(name)})" if run.rival is not None else ""))
    if maps[0]:
        st.caption(f"{' and '.join(said)} visual tokens: clear with a green outline. Dropped: dark and hatched.")


def original(run: Run, outcome: Outcome, colour: tuple[int, int, int], frame: int = 0) -> Image.Image:
    """Return the image as it was given, or a frame of the clip, with the click of an answer."""
    first = run.request.images[0] if run.request.images else run.shown[min(frame, len(run.shown) - 1)]
    image = first.convert("RGB").resize((SIDE, max(1, round(first.height * SIDE / first.width))))
    if outcome.point is not None:
        x, y = (part * SIDE / first.width for part in outcome.point)
        ring(image, x, y, colour, 20)
    return image


def kept(run: Run, outcome: Outcome, maps: Sequence[VisualMap], frame: int = 0) -> Image.Image:
    """Return the overlay without its margin and legend, which the page has in words."""
    if not maps:
        return original(run, outcome, OPTIMIZED, frame)
    if run.request.clip is not None:
        drawn = overlay([run.shown[min(frame, len(run.shown) - 1)]], [video.stills(maps)[frame]])
    else:
        size = (run.request.images or run.shown)[0].size
        clicks = [] if outcome.point is None else [(outcome.point[0] / size[0], outcome.point[1] / size[1])]
        drawn = overlay(run.shown, maps, clicks=clicks)
    return drawn.crop((GAP, GAP, drawn.width - GAP, drawn.height - LEGEND))


def clicked(run: Run) -> str:
    """Return where the answers click, and in which space."""
    first = (run.request.images or run.shown)[0]

    def place(outcome: Outcome) -> str:
        if outcome.point is None:
            return "nowhere"
        x, y = outcome.point
        beside = "" if 0 <= x <= first.width and 0 <= y <= first.height else ", beside the image"
        off = f", {math.dist(run.dense.point, outcome.point):.0f} away" if run.dense.point is not None else ""
        return f"({x:.0f}, {y:.0f}){beside}" + (off if outcome is not run.dense else "")

    ours = [f":orange[◎ {escaped(name)} {place(outcome)}]" for name, outcome in policies(run)]
    return (
        f"Clicks, ringed: {'; '.join([f':blue[◎ dense {place(run.dense)}]', *ours])}; in pixels of the image as given "
        f"({first.width} × {first.height}). The answers above count in {UNITS[run.about.units]}."
    )


def facts(run: Run) -> None:
    """Say on what the figures were measured, and what they are worth."""
    report, repeats = run.optimized.report, run.request.repeats
    st.caption(
        f"{escaped(run.about.name)} · {run.about.parameters / 1e6:.1f} M parameters · {report.dtype} · "
        f"{report.device} · {report.attn_implementation} · gains are against dense, "
        + ("one measured run each" if repeats == 1 else f"medians of {repeats} runs in turn")
        + ". A single image shows how a method works, not how good it is."
    )

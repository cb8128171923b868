"""Render filled pages in headless Chromium and read from the DOM where their controls are."""

from __future__ import annotations

import base64
import functools
import io
import shutil
from collections import Counter
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from types import TracebackType
from typing import Any

from PIL import Image

from .catalogue import split_of
from .fill import Filled, fill

Edges = tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels
NAMES = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = ("--no-sandbox", "--hide-scrollbars", "--force-device-scale-factor=1", "--font-render-hinting=none")
SIDES = (320, 8192)  # pixels a viewport may have


@dataclass(frozen=True)
class Control:
    """One control on the screen.

    Attributes:
        name: as assistive technology would read it.
        kind: one of `worlds.words.KINDS`.
        box: where a click is right.
        text_box: where the name is read: the text, which a field may have above itself, or the icon; None: nowhere.
        data_type: "text", or "icon" where only a drawing shows the name.
        target: whether "Click NAME." has this and no other right answer: visible as a whole, not covered, and nothing
            else on the page bears or reads the name.
    """

    name: str
    kind: str
    box: Edges
    text_box: Edges | None
    data_type: str
    target: bool

    @property
    def centre(self) -> tuple[float, float]:
        x0, y0, x1, y1 = self.box
        return (x0 + x1) / 2, (y0 + y1) / 2


@dataclass(frozen=True)
class Text:
    """Readable text, or the name of an icon; `boxes`, one for a line, may reach beyond what is visible of it."""

    text: str
    boxes: tuple[Edges, ...]


@dataclass(frozen=True)
class Screen:
    """A rendered page: an RGB image of `size` (width, height) pixels and the truth about it."""

    page: str
    seed: int
    theme: str
    font_size: int
    image: Image.Image = field(repr=False)
    controls: tuple[Control, ...] = field(repr=False)
    texts: tuple[Text, ...] = field(repr=False)
    icons: tuple[Text, ...] = field(repr=False)
    cell: int = 1  # pixels; where controls were moved so that what they show begins at multiples of this

    @property
    def split(self) -> str:
        return split_of(self.page)

    @property
    def targets(self) -> list[Control]:
        return [control for control in self.controls if control.target]


def find_browser() -> str | None:
    """Return the Chromium of the system, or None."""
    return next((path for path in map(shutil.which, NAMES) if path), None)


class Renderer:
    """A browser session: `with Renderer() as renderer: screen = renderer.render("mail-inbox", 7)`.

    One session renders any number of pages, in one thread. Nothing is asked of the network.

    Args:
        size: (width, height) of the viewport in pixels.
        cell: pixels. Above 1, every control is moved by up to half of it, so that what it shows begins where a cell
            does and stands in the middle of a row of cells: type that a tiny tower can learn to read.

    Raises:
        ValueError: Playwright's client or a browser is missing, or a bad size.
    """

    def __init__(self, size: tuple[int, int] = (1280, 800), cell: int = 1) -> None:
        if any(isinstance(side, bool) or not SIDES[0] <= side <= SIDES[1] for side in size):
            raise ValueError(f"size {size!r}: each side must have {SIDES[0]} to {SIDES[1]} pixels")
        self.size, self.cell = size, cell

    def __enter__(self) -> Renderer:
        try:
            from playwright.sync_api import sync_playwright
        except ImportError as error:
            raise ValueError("rendering pages needs Playwright's client: pip install playwright") from error
        self._engine = sync_playwright().start()
        try:
            path = find_browser()
            if path is None and not Path(self._engine.chromium.executable_path).exists():
                raise ValueError("no Chromium was found: apt-get install chromium, or playwright install chromium")
            self._browser = self._engine.chromium.launch(executable_path=path, args=list(ARGUMENTS))
            width, height = self.size
            self._context = self._browser.new_context(viewport={"width": width, "height": height}, offline=True)
            self._page = self._context.new_page()
            self._session = self._context.new_cdp_session(self._page)
        except BaseException:
            self._engine.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._browser.close()
        self._engine.stop()

    def render(self, page: str, seed: int) -> Screen:
        """Render a page filled from a seed; equal arguments give equal screens as long as browser and fonts do."""
        return self.show(fill(page, seed), page, seed)

    def show(self, filled: Filled, page: str = "", seed: int = 0) -> Screen:
        """Render a document."""
        # Not `set_content`: that waits for the life cycle of a navigation, which nothing here needs.
        self._page.evaluate("html => { document.open(); document.write(html); document.close() }", filled.html)
        if self.cell > 1:
            self._page.evaluate(_script("align.js"), self.cell)
        seen = self._page.evaluate(_script("collect.js"))
        shot = self._session.send("Page.captureScreenshot", {"format": "png", "optimizeForSpeed": True})
        image = Image.open(io.BytesIO(base64.b64decode(shot["data"]))).convert("RGB")
        return replace(_screen(page, seed, filled, image, seen), cell=self.cell)


@functools.cache
def _script(name: str) -> str:
    return (files(__package__) / name).read_text(encoding="utf-8")


def _screen(page: str, seed: int, filled: Filled, image: Image.Image, seen: dict[str, Any]) -> Screen:
    texts, icons = (
        tuple(Text(one["text"], tuple(map(tuple, one["boxes"]))) for one in seen[sort]) for sort in ("texts", "icons")
    )
    borne = Counter(one["name"].casefold() for one in seen["controls"])
    read = Counter(text.text.casefold() for text in texts)
    controls = []
    for one in seen["controls"]:
        name = one["name"].casefold()
        # Its own text is one of those read.
        alone = borne[name] == 1 and read[name] <= (one["data_type"] == "text")
        box, text_box = tuple(one["box"]), tuple(one["text_box"]) if one["text_box"] else None
        controls.append(Control(one["name"], one["kind"], box, text_box, one["data_type"], one["whole"] and alone))
    return Screen(page, seed, filled.theme, filled.font_size, image, tuple(controls), texts, icons)

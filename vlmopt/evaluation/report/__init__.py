"""The report of a run: one HTML file that needs nothing else, plots as PNG, and a table for a README."""

from __future__ import annotations

from pathlib import Path

from ...atomic import atomic_write
from .draw import png
from .facts import Facts
from .html import page
from .markdown import markdown
from .plots import drawings

__all__ = ["write_report"]


def write_report(run: Path) -> Path:
    """Write report.html, report.md and plots/*.png into a run directory that has its summary.json.

    Returns:
        The path of report.html.

    Raises:
        ValueError: no summary.json there, or one of another version. OSError: something cannot be written.
    """
    facts = Facts.load(run)
    folder = run / "plots"
    folder.mkdir(exist_ok=True)
    drawn = drawings(facts)
    for name, scene in drawn.items():
        (folder / f"{name}.png").write_bytes(png(scene))
    plots = {f"plots/{name}.png": scene.title for name, scene in drawn.items()}
    for name, text in (("report.md", markdown(facts, plots)), ("report.html", page(facts))):
        with atomic_write(run / name) as fresh:
            fresh.write_text(text, encoding="utf-8")
    return run / "report.html"

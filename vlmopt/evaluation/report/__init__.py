"""The report of a run: one HTML file that needs nothing else, plots as PNG, and a table for a README."""

from __future__ import annotations

from pathlib import Path

from ..records import write_whole
from .draw import png
from .facts import Facts
from .html import page
from .markdown import markdown
from .plots import pictures

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
    drawn = pictures(facts)
    for name, scene in drawn.items():
        (folder / f"{name}.png").write_bytes(png(scene))
    write_whole(run / "report.md", markdown(facts, {f"plots/{name}.png": scene.title for name, scene in drawn.items()}))
    write_whole(run / "report.html", page(facts))
    return run / "report.html"

"""The report of a run: one HTML file that needs nothing else, plots, and tables for a README, a paper and a program."""

from __future__ import annotations

from pathlib import Path

from ...atomic import atomic_write
from .exports import pictures, table
from .facts import Facts
from .html import page
from .latex import latex
from .markdown import markdown

__all__ = ["write_report"]


def write_report(run: Path) -> Path:
    """Write report.html, .md and .tex, figures.csv and plots/* into a run directory that has its summary.json.

    Returns:
        The path of report.html.

    Raises:
        ValueError: no summary.json there, or one of another version. OSError: something cannot be written.
    """
    facts = Facts.load(run)
    folder = run / "plots"
    folder.mkdir(exist_ok=True)
    for name, content in pictures(facts):
        (folder / name).write_bytes(content)
    texts = (
        ("report.md", markdown(facts)), ("report.tex", latex(facts)), ("figures.csv", table(facts)),
        ("report.html", page(facts)),
    )  # fmt: skip
    for name, text in texts:
        with atomic_write(run / name) as fresh:
            fresh.write_text(text, encoding="utf-8")
    return run / "report.html"

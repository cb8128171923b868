"""Write the tables of the README and the documentation that are made of results, between their marks in a page.

A page has `<!-- table: NAME -->`, the table, `<!-- end -->`. Under every table stands the machine that its newest row
was measured on.

    python benchmarks/tables.py            # say which pages are not what the results say
    python benchmarks/tables.py --write
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import decoding_tables  # noqa: F401  (these register themselves)
import estimate_tables  # noqa: F401
import gpu_tables  # noqa: F401
import look_tables  # noqa: F401
import serving_tables  # noqa: F401
import speed_tables  # noqa: F401
from table_parts import MADE

import kv_tables  # noqa: F401

ROOT = Path(__file__).parents[1]
MARKS = re.compile(r"<!-- table: ([\w-]+) -->\n(.*?)<!-- end -->", re.DOTALL)


def pages() -> Iterator[tuple[Path, str, str]]:
    """Yield every page with tables: where it lies, what it says and what it should say."""
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        text = path.read_text(encoding="utf-8")
        made = MARKS.sub(lambda found: f"<!-- table: {found[1]} -->\n{MADE[found[1]]()}<!-- end -->", text)
        if MARKS.search(text):
            yield path, text, made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the pages")
    options = parser.parse_args()
    stale = [(path, made) for path, text, made in pages() if text != made]
    for path, made in stale:
        if options.write:
            path.write_text(made, encoding="utf-8")
        print(f"{path.relative_to(ROOT)} {'is written' if options.write else 'is not what the results say'}")
    sys.exit(bool(stale) and not options.write)


if __name__ == "__main__":
    main()

"""Every cell of the table in docs/families.md is what its check finds, and the table knows every family."""

from __future__ import annotations

import re

import pytest
import transformers

from tests.support.family_cells import CELLS, EVERY
from tools import family_table
from vlmopt.families import families, family_of
from vlmopt.families.refused import REFUSED

STORED = family_table.stored()
SAME = transformers.__version__ == STORED["transformers"]


@pytest.mark.parametrize("column", CELLS)
@pytest.mark.parametrize("name", EVERY)
def test_a_cell_is_what_its_check_finds(name: str, column: str) -> None:
    found = CELLS[column](EVERY[name])
    assert found == STORED["families"][name][column] or not SAME


def test_the_table_is_as_new_as_the_families() -> None:
    described = {family_of(row.config()).name for row in EVERY.values()}
    if SAME:
        assert described == families().keys()
        assert STORED["families"].keys() == EVERY.keys()
    assert all(row.keys() == CELLS.keys() for row in STORED["families"].values())


def test_every_row_has_an_example_of_its_own() -> None:
    examples = list(STORED["examples"].values())
    assert len(set(examples)) == len(examples) == len(STORED["families"])


def test_the_page_shows_the_table() -> None:
    page = family_table.PAGE.read_text(encoding="utf-8")
    assert family_table.filled(page, STORED) == page


def test_the_page_names_what_is_refused() -> None:
    page = family_table.PAGE.read_text(encoding="utf-8")
    for kind in filter(None, REFUSED):
        assert re.search(rf"`{re.escape(kind)}`", page), kind

"""`docs/fidelity.md` has one row for every method, and says of each what the code says."""

from __future__ import annotations

import re
from pathlib import Path

from vlmopt import attention_fix, decoding, kv, methods, pruning
from vlmopt.kernels import patterns
from vlmopt.kv.base import LAYER_BUDGETS

TABLE = Path(__file__).parents[2] / "docs" / "fidelity.md"
COLUMNS = 8


def rows() -> dict[str, list[str]]:
    """Of methods, by name."""
    return {name: cells for name, cells in every_row().items() if "=" not in name}


def every_row() -> dict[str, list[str]]:
    lines = [line for line in TABLE.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    split = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    assert all(len(cells) == COLUMNS for cells in split)
    names = [cells[0].strip("`") for cells in split]
    assert len(names) == len(set(names))
    return dict(zip(names, split, strict=True))


def own() -> dict[str, type]:
    registries = (pruning.registry, attention_fix.registry, patterns.registry, kv.registry, decoding.registry)
    found = {name: cls for registry in registries for name, cls in registry.items()}
    return {name: cls for name, cls in found.items() if cls.__module__.startswith("vlmopt.")}


def test_every_method_has_a_row():
    assert rows().keys() == own().keys()


def test_settings_of_evictions_from_papers_of_their_own_have_a_row():
    said = [name for name in every_row() if "=" in name]
    _, *budgets = LAYER_BUDGETS
    assert said == ["mix=True", *(f'layer_budgets="{budget}"' for budget in budgets)]


def test_rows_name_the_paper_and_what_paper_compat_restores():
    for name, cells in rows().items():
        row = methods.entry(own()[name])
        if row["paper"]:
            assert row["paper"] in cells[1], name
        assert cells[3], name
        takes = any(setting["name"] == "paper_compat" for setting in row["settings"])
        assert bool(cells[6]) == (takes or name == "debias"), name


def test_positions_are_those_that_paper_compat_takes():
    for name, cls in pruning.registry.items():
        if name in rows() and "paper_compat" in cls.__dataclass_fields__:
            more = {"scorer": "s"} if name == "focus_ui" else {}
            method = cls(keep_ratio=0.5, paper_compat=True, **more)
            said = rows()[name][7]
            assert ("repack" in said) == (method.numbering == "repack"), name

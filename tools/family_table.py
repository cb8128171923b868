"""Run the check of every cell of the table in docs/families.md, and write down what it found: family x what works.

`python -m tools.family_table [NAME ...]` runs all families, or some, and writes `docs/families.json` and the page.
A test runs the same checks and compares.
"""

from __future__ import annotations

import ast
import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGE, STORED = ROOT / "docs/families.md", ROOT / "docs/families.json"
ENGINE = ROOT / "serving/vllm/vlmopt_vllm/families.py"
MARKS = {"yes": "yes", "no": "refused", "": "—"}
BLOCK = re.compile(r"(<!-- families -->\n).*?(<!-- end of families -->)", re.DOTALL)


def stored() -> dict[str, Any]:
    """Return what the checks found when they were last written down."""
    found: dict[str, Any] = json.loads(STORED.read_text(encoding="utf-8"))
    return found


def served() -> set[str]:
    """Return the architectures that the plugin for vLLM serves."""
    tree = ast.parse(ENGINE.read_text(encoding="utf-8"))
    (table,) = (n for n in tree.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "ARCHITECTURES")
    return set(ast.literal_eval(table.value))


def filled(page: str, found: dict[str, Any]) -> str:
    """Return the page with its table made anew."""
    return BLOCK.sub(lambda block: block[1] + table(found) + block[2], page)


def table(found: dict[str, Any]) -> str:
    rows, engine = found["families"], served()
    columns = list(next(iter(rows.values())))
    head = f"| family | example | {' | '.join(columns)} | vLLM |\n|{'---|' * (len(columns) + 3)}\n"
    lines = [
        f"| `{name}` | {found['examples'][name]} | {' | '.join(MARKS[row[c]] for c in columns)} | "
        f"{'yes' if found['architectures'][name] in engine else '—'} |\n"
        for name, row in sorted(rows.items())
    ]
    return head + "".join(lines)


def main(names: list[str]) -> None:
    import transformers

    from tests.support.family_cells import CELLS, EVERY
    from vlmopt.families import family_of

    before = stored()["families"] if STORED.exists() and names else {}
    found: dict[str, Any] = {"transformers": transformers.__version__, "examples": {}, "architectures": {}}
    found["families"] = {}
    for name, family in EVERY.items():
        again = not names or name in names
        found["families"][name] = {column: check(family) for column, check in CELLS.items()} if again else before[name]
        found["examples"][name] = family.example or family_of(family.config()).example
        found["architectures"][name] = family.model_class.__name__
        if again:
            print(name, found["families"][name], flush=True)
    STORED.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), found), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])

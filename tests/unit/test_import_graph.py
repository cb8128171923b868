"""Files import one another along arrows, never in circles; what is imported for type checkers counts."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = {"vlmopt": "vlmopt", **{f"vlmopt.{name}": name for name in ("pruning", "attention_fix", "apps")}}


def modules() -> dict[str, Path]:
    """Every module of ours by its installed name."""
    found = {}
    for package, folder in FOLDERS.items():
        for path in (ROOT / folder).rglob("*.py"):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join([package, *parts]).removesuffix(".__init__")] = path
    return found


def imported(name: str, path: Path, known: dict[str, Path]) -> set[str]:
    """Modules of ours that a module imports, anywhere in it."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            home = package.rsplit(".", node.level - 1)[0] if node.level else ""
            base = ".".join(filter(None, [home, node.module]))
            found |= {inner if (inner := f"{base}.{alias.name}") in known else base for alias in node.names}
    return (found & known.keys()) - {name}


def test_no_circle_of_files() -> None:
    known = modules()
    assert len(known) > 300
    graph = {name: imported(name, path, known) for name, path in known.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        raise AssertionError(f"a circle of files: {' -> '.join(error.args[1])}") from error


def test_the_product_does_not_import_the_training_of_its_checkpoints() -> None:
    known = modules()
    for name, path in known.items():
        if not name.startswith("vlmopt.training"):
            wrong = {other for other in imported(name, path, known) if other.startswith("vlmopt.training")}
            assert not wrong, f"{name} imports {wrong}"

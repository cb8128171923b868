"""Files import one another along arrows, never in circles; what is imported for type checkers or by name counts."""

from __future__ import annotations

import ast
from collections import defaultdict
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import vlmopt
from vlmopt.cli.parser import COMMANDS
from vlmopt.kernels.sparse_attention import BACKENDS

ROOT = Path(__file__).parents[2]
FOLDERS = {  # what a folder is imported as
    "vlmopt": "vlmopt",
    "vlmopt.pruning": "pruning",
    "vlmopt.attention_fix": "attention_fix",
    "vlmopt.apps": "apps",
    "vlmopt_vllm": "serving/vllm/vlmopt_vllm",
    "serving_tests": "serving/vllm/tests",
    "tests": "tests",
    "examples": "examples",
    "tools": "tools",
    "": "benchmarks",  # scripts, which import one another by their bare names
}
ALGORITHMS = ("vlmopt.core", "vlmopt.pruning", "vlmopt.attention_fix")
ARROWS = {  # part of the installed packages -> the parts that it may import
    "vlmopt.core": (),
    "vlmopt.pruning": ("vlmopt.core",),
    "vlmopt.attention_fix": ("vlmopt.core",),
    "vlmopt": ALGORITHMS,
    "vlmopt.training": ("vlmopt", *ALGORITHMS),
    "vlmopt.apps": ("vlmopt", *ALGORITHMS),
    "vlmopt_vllm": ("vlmopt", *ALGORITHMS),
}


COMMAND_MODULES = [command.module for command in COMMANDS.values()]
BY_NAME = {  # module -> what `import_module` gives it, beside what it imports by statements
    "vlmopt": {f"vlmopt.{home}" for home in vlmopt._HOME.values()},
    "vlmopt.cli.main": {f"vlmopt.cli.{each}" for name in COMMAND_MODULES for each in (name, f"arguments.{name}")},
    "vlmopt.cli.parser": {f"vlmopt.cli.arguments.{name}" for name in COMMAND_MODULES},
    "vlmopt.kernels.sparse_attention.backends": {f"vlmopt.kernels.sparse_attention.{name}" for name in BACKENDS},
    "vlmopt.media": set(),  # readers of images and videos, none of them ours
    "vlmopt_vllm.models": set(),  # models of vLLM
}


def modules() -> dict[str, Path]:
    """Every module of ours by its installed name."""
    found = {}
    for package, folder in FOLDERS.items():
        for path in (ROOT / folder).rglob("*.py"):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join(filter(None, [package, *parts])).removesuffix(".__init__")] = path
    return found


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(name: str, path: Path, known: dict[str, Path]) -> set[str]:
    """Modules of ours that a module imports, anywhere in it, and the packages around them, which run before them."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found = set(BY_NAME.get(name, ()))
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            home = package.rsplit(".", node.level - 1)[0] if node.level else ""
            base = ".".join(filter(None, [home, node.module]))
            found |= {inner if (inner := f"{base}.{alias.name}") in known else base for alias in node.names}
    around = {
        parent for other in found & known.keys() for parent in packages_of(other) if parent not in packages_of(name)
    }
    return ((found | around) & known.keys()) - {name}


def packages_of(name: str) -> set[str]:
    """The packages around a module."""
    words = name.split(".")
    return {".".join(words[:count]) for count in range(1, len(words))}


@cache
def graph() -> dict[str, set[str]]:
    known = modules()
    return {name: imported(name, path, known) for name, path in known.items()}


def part_of(name: str) -> str | None:
    """The part of the installed packages that a module belongs to; None for tests and scripts."""
    return max((part for part in ARROWS if f"{name}.".startswith(f"{part}.")), key=len, default=None)


def test_imports_by_name_are_listed() -> None:
    """An `import_module` of a name that is data would hide an arrow from every test below."""
    known, dynamic = modules(), {"import_module", "__import__", "run_module", "run_path"}
    used = {
        name
        for name, path in known.items()
        if part_of(name) is not None
        and any(getattr(node, "attr", getattr(node, "id", None)) in dynamic for node in ast.walk(parsed(path)))
    }
    assert used == BY_NAME.keys()
    assert set().union(*BY_NAME.values()) <= known.keys()


def test_imports_use_installed_names() -> None:
    """`import pruning` works in a checkout alone, and no other test would see where it leads."""
    bare = {folder for package, folder in FOLDERS.items() if package.startswith("vlmopt.")}
    for name, path in modules().items():
        if part_of(name) is None:
            continue
        for node in ast.walk(parsed(path)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [str(node.module)]
            assert not {word.split(".")[0] for word in names} & bare, f"{name} imports {names}"


def test_no_circle_of_files() -> None:
    found = graph()
    assert len(found) > 600
    try:
        TopologicalSorter(found).prepare()
    except CycleError as error:
        raise AssertionError(f"a circle of files: {' -> '.join(error.args[1])}") from error


def test_no_circle_of_packages() -> None:
    """What lies directly below a part counts as one, with all that lies below it."""
    found = defaultdict(set)
    for name, others in graph().items():
        packages = {package_of(other) for other in others}
        found[package_of(name)] |= packages - {package_of(name), None}
    del found[None]
    assert {"vlmopt.policy", "vlmopt.runtime", "vlmopt.pruning", "vlmopt_vllm.plans"} < found.keys()
    try:
        TopologicalSorter(found).prepare()
    except CycleError as error:
        raise AssertionError(f"a circle of packages: {' -> '.join(error.args[1])}") from error


def package_of(name: str) -> str | None:
    """The first two words of an installed name; None for tests and scripts."""
    return ".".join(name.split(".")[:2]) if part_of(name) is not None else None


@pytest.mark.parametrize("part", ARROWS)
def test_parts_import_along_the_arrows(part: str) -> None:
    mine = {name: others for name, others in graph().items() if part_of(name) == part}
    assert mine
    for name, others in mine.items():
        wrong = {other for other in others if part_of(other) not in (part, *ARROWS[part])}
        assert not wrong, f"{name} imports {wrong}"


RUNTIME = {  # folder -> folders of which it knows nothing
    "captures": ("components",),
    "hooks": ("captures", "components"),
    "": ("hooks", "captures", "components"),
}


@pytest.mark.parametrize("folder", RUNTIME)
def test_the_runtime_imports_downwards(folder: str) -> None:
    home = f"vlmopt.runtime.{folder}".rstrip(".")
    mine = {name: others for name, others in graph().items() if name.rpartition(".")[0] == home}
    for other in ("session", "hooks", "captures", "components"):  # the first installs everything
        mine.pop(f"vlmopt.runtime.{other}", None)
    assert len(mine) > 5
    for name, others in mine.items():
        wrong = {o for o in others for below in RUNTIME[folder] if f"{o}.".startswith(f"vlmopt.runtime.{below}.")}
        assert not wrong, f"{name} imports {wrong}"

"""The algorithm packages know torch and the standard library only, and not each other."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("package", ["vlmopt/core", "pruning", "attention_fix"])
def test_only_torch_and_the_standard_library(package):
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module]
            for name in names:
                top = name.split(".")[0]
                assert top == "torch" or name.startswith("vlmopt.core") or top in sys.stdlib_module_names, (
                    f"{path.name} imports {name}"
                )

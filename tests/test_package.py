"""Importing has no side effects, and the arrows between the packages hold."""

from __future__ import annotations

import ast
import importlib.metadata
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import vlmopt

ROOT = Path(vlmopt.__file__).parents[1]
PACKAGES = {"vlmopt", "pruning", "attention_fix", "method_kit", "apps"}
ALLOWED = {
    "method_kit": set(),
    "pruning": {"pruning", "method_kit"},
    "attention_fix": {"attention_fix", "method_kit"},
    "vlmopt": {"vlmopt", "pruning", "attention_fix", "method_kit"},
    "apps": {"apps", "vlmopt"},
}

PROBE = """
import sys
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
before = sorted(ALL_ATTENTION_FUNCTIONS.valid_keys())
import vlmopt, vlmopt.cli, vlmopt.media, vlmopt.frames, vlmopt.overlay, vlmopt.measure, vlmopt.worlds
import pruning, attention_fix, apps
assert sorted(ALL_ATTENTION_FUNCTIONS.valid_keys()) == before, "an attention function was registered"
heavy = {"cv2", "av", "qwen_vl_utils", "streamlit", "torchvision", "datasets"}
loaded = heavy & set(sys.modules)
assert not loaded, f"imported: {loaded}"
"""


def imported(path: Path) -> Iterator[str]:
    """Top-level names of the absolute imports of a file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.split(".")[0]


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_arrows(package: str) -> None:
    for path in (ROOT / package).rglob("*.py"):
        wrong = (set(imported(path)) & PACKAGES) - ALLOWED[package]
        assert not wrong, f"{path} imports {wrong}"


def test_import_has_no_side_effects() -> None:
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_version() -> None:
    assert importlib.metadata.version("vlmopt") == vlmopt.__version__


def test_public_names() -> None:
    for name in vlmopt.__all__:
        assert hasattr(vlmopt, name)


def test_no_torchvision_is_asked_for() -> None:
    required = importlib.metadata.requires("vlmopt") or []
    assert not [line for line in required if line.startswith("torchvision")]

"""Importing has no side effects, and the arrows between the packages hold."""

from __future__ import annotations

import ast
import importlib.metadata
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import yaml

import vlmopt
from vlmopt.evaluation.data import Source
from vlmopt.evaluation.evaluate import Settings
from vlmopt.measure import measure

ROOT = Path(__file__).parents[2]
FOLDERS = {"vlmopt.pruning": "pruning", "vlmopt.attention_fix": "attention_fix", "vlmopt.apps": "apps"}
ALLOWED = {
    "vlmopt.core": {"vlmopt.core"},
    "vlmopt.pruning": {"vlmopt.pruning", "vlmopt.core"},
    "vlmopt.attention_fix": {"vlmopt.attention_fix", "vlmopt.core"},
    "vlmopt": {"vlmopt", "vlmopt.core", "vlmopt.pruning", "vlmopt.attention_fix"},
    "vlmopt.apps": {"vlmopt.apps", "vlmopt"},
}

PROBE = """
import sys
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
before = sorted(ALL_ATTENTION_FUNCTIONS.valid_keys())
import vlmopt, vlmopt.cli.main, vlmopt.media, vlmopt.frames, vlmopt.overlay, vlmopt.measure, vlmopt.synthetic
import vlmopt.pruning, vlmopt.attention_fix, vlmopt.apps
assert sorted(ALL_ATTENTION_FUNCTIONS.valid_keys()) == before, "an attention function was registered"
heavy = {"cv2", "av", "qwen_vl_utils", "streamlit", "torchvision", "datasets"}
loaded = heavy & set(sys.modules)
assert not loaded, f"imported: {loaded}"
"""


def package_of(module: str) -> str:
    """The package of ours that a module belongs to, or ''."""
    parts = module.split(".")
    return next((p for p in (".".join(parts[:2]), parts[0]) if p in ALLOWED), "")


def imported(path: Path) -> Iterator[str]:
    """Names of the absolute imports of a file; those of `from vlmopt import x` as vlmopt.x."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_arrows(package: str) -> None:
    folder = ROOT / FOLDERS.get(package, package.replace(".", "/"))
    files = [p for p in folder.rglob("*.py") if package != "vlmopt" or "core" not in p.relative_to(folder).parts[:1]]
    assert files
    for path in files:
        names = list(imported(path))
        loose = {n for n in names if n.split(".")[0] in {*FOLDERS.values(), "method_kit"}}
        assert not loose, f"{path} imports {loose}: the installed name is vlmopt"
        wrong = {p for p in map(package_of, names) if p} - ALLOWED[package]
        assert not wrong, f"{path} imports {wrong}"


def test_import_has_no_side_effects() -> None:
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_version() -> None:
    assert importlib.metadata.version("vlmopt") == vlmopt.__version__
    for name, form in (("CITATION.cff", "version: {}"), ("serving/vllm/pyproject.toml", 'version = "{}"')):
        assert form.format(vlmopt.__version__) in (ROOT / name).read_text(encoding="utf-8").splitlines(), name


def test_a_checkout_that_was_not_installed_is_imported_whole() -> None:
    """Whoever installs it and starts Python in the checkout gets the checkout's files."""
    paths = [str(ROOT), *(path for path in sys.path if path.endswith("site-packages"))]
    names = ", ".join(FOLDERS)
    code = f"import sys; sys.path[:0] = {paths}; import {names}; print(vlmopt.pruning.__file__)"
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True)  # -S: no editable install
    assert done.stdout.strip() == str(ROOT / "pruning" / "__init__.py"), done.stderr


SHORT = ("vlmopt", *FOLDERS.values(), "benchmarks", "examples", "serving/vllm/vlmopt_vllm", "tools")


@pytest.mark.parametrize("folder", SHORT)
def test_files_are_short(folder: str) -> None:
    lines = {path.name: path.read_text(encoding="utf-8").count("\n") for path in (ROOT / folder).rglob("*.py")}
    assert not {name: count for name, count in lines.items() if count > 250}


@pytest.mark.parametrize("form", sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("[!c]*.yml")), ids=lambda p: p.stem)
def test_issue_forms_have_only_keys_that_github_knows(form: Path) -> None:
    """A comma in `{label: one, or another}` makes a second key, and GitHub then shows no form at all."""
    fields = yaml.safe_load(form.read_text(encoding="utf-8"))["body"]
    assert fields
    for field in fields:
        assert field.keys() <= {"type", "attributes", "validations"}
        assert field["attributes"].keys() <= {"label", "description", "render"}
        assert field["attributes"]["label"]


def test_public_names() -> None:
    for name in vlmopt.__all__:
        assert hasattr(vlmopt, name)


def test_a_misspelt_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(AttributeError) as caught:
        vlmopt.optimise  # noqa: B018
    assert (caught.value.name, caught.value.obj) == ("optimise", vlmopt)  # of which Python makes "Did you mean"


@pytest.mark.parametrize("call", [vlmopt.restore, vlmopt.report, lambda model: vlmopt.optimize(model, "balanced")])
def test_what_is_no_model_is_refused(call: Any) -> None:
    with pytest.raises(TypeError, match="model must be a loaded transformers model, got str"):
        call("tiny-qwen")


def test_a_misspelt_checkpoint_is_refused_without_asking_the_hub() -> None:
    with pytest.raises(ValueError, match=r"'tiny-qwn' is not a bundled .* \(did you mean 'tiny-qwen'"):
        vlmopt.load_checkpoint("tiny-qwn")


def test_no_torchvision_is_asked_for() -> None:
    required = importlib.metadata.requires("vlmopt") or []
    assert not [line for line in required if line.startswith("torchvision")]


@pytest.mark.parametrize(
    ("call", "given", "meant"),
    [
        (Settings, "modell", "model"),
        (Source, "dta", "data"),
        (vlmopt.optimize, "polcy", "policy"),
        (vlmopt.optimized, "polcy", "policy"),
        (vlmopt.estimate, "modle", "model"),
        (vlmopt.tune, "objectiv", "objective"),
        (vlmopt.diagnose_sinks, "modle", "model"),
        (measure, "repeat", "repeats"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_misspelt_argument_is_answered_with_the_nearest(call: Any, given: str, meant: str) -> None:
    with pytest.raises(TypeError, match=rf"unknown (setting|argument) '{given}' \(did you mean '{meant}'"):
        call(**{given: "x"})


@pytest.mark.parametrize("name", sorted({*vlmopt.__all__} - {"__version__"}))
def test_annotations_can_be_resolved(name: str) -> None:
    get_type_hints(getattr(vlmopt, name))

"""Wheel, source distribution and editable install, each in an environment of its own, used beside a user's folders."""

from __future__ import annotations

import re
import shutil
import site
import subprocess
import sys
import tarfile
import venv
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIMIT = 12 * 2**20  # bytes of a wheel
THEIRS = (
    "pruning.py",
    "attention_fix.py",
    "method_kit.py",
    "apps/__init__.py",
    "core/__init__.py",
    "runtime/__init__.py",
)
USE = """
import sys
import vlmopt, vlmopt.apps, vlmopt.attention_fix, vlmopt.core, vlmopt.kernels.patterns, vlmopt.pruning, vlmopt.runtime
assert vlmopt.pruning.__file__ != "pruning.py"
assert not {"pruning", "attention_fix", "apps", "core", "method_kit"} & set(sys.modules)
from PIL import Image
model, processor = vlmopt.load_checkpoint("tiny-qwen")
turn = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]}]
prompt = processor.apply_chat_template(turn, add_generation_prompt=True)
inputs = processor(text=[prompt], images=[Image.new("RGB", (112, 112), "white")], return_tensors="pt")
vlmopt.optimize(model, "balanced").generate(**inputs, max_new_tokens=2)
print(vlmopt.report(model).applied[0]["method"])
import pruning
assert pruning.MINE
"""
MODULES = (
    "vlmopt",
    "vlmopt.pruning",
    "vlmopt.attention_fix",
    "vlmopt.kernels.patterns",
    "vlmopt.kv",
    "vlmopt.calibration",
)
PUBLIC = [f"{module}.{name}" for module in MODULES for name in import_module(module).__all__]
TYPED = "\n".join(
    [
        f"import {', '.join(MODULES)}",
        *(f"reveal_type({name})" for name in PUBLIC),
        "reveal_type(vlmopt.pruning.FastV(keep_ratio=0.5, layer=2).layer)",
    ]
)


SHIPPED = (  # tests of the source distribution that look at code, pages, results and examples
    "tests/unit/test_policy_inline.py",
    "tests/unit/test_import_graph.py",
    "tests/unit/test_tables.py",
    "tests/cli/test_readme.py",
)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the wheel and the source distribution of this tree."""
    out = tmp_path_factory.mktemp("dist")
    copy = tmp_path_factory.mktemp("tree") / "vlmopt"  # a build writes into its tree
    left = shutil.ignore_patterns(
        ".*", "build", "dist", "*.egg-info", "__pycache__", "runs", "demo-out", "whole", "site"
    )
    shutil.copytree(ROOT, copy, ignore=left)
    words = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(copy)]
    subprocess.run(words, check=True, capture_output=True)
    return out


def environment(directory: Path, what: str) -> Path:
    """A fresh environment with one thing installed in it; what that needs is borrowed from this one."""
    venv.create(directory, with_pip=False)
    python = directory / "bin" / "python"
    packages = next((directory / "lib").glob("python3*")) / "site-packages"
    borrowed = [path for path in (*site.getsitepackages(), *sys.path) if path.endswith("site-packages")]
    (packages / "borrowed.pth").write_text("\n".join(borrowed))
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(python),
        "install",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
    ]
    done = subprocess.run([*pip, *what.split()], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return python


def unpacked(built: Path, directory: Path) -> Path:
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        archive.extractall(directory, filter="data")
    return next(directory.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["wheel", "sdist", "editable"])
def test_works_beside_folders_of_the_same_names(kind: str, built: Path, tmp_path: Path) -> None:
    source = unpacked(built, tmp_path / "source") if kind == "editable" else None
    files = {"wheel": "*.whl", "sdist": "*.tar.gz"}
    what = f"--editable {source}" if source else str(next(built.glob(files[kind])))
    python = environment(tmp_path / "venv", what)
    theirs = tmp_path / "theirs"
    for name in THEIRS:
        (theirs / name).parent.mkdir(parents=True, exist_ok=True)
        (theirs / name).write_text("MINE = True\n")
    (theirs / "use.py").write_text(USE)
    (theirs / "typed.py").write_text(TYPED)
    run = {"capture_output": True, "text": True, "cwd": theirs}
    done = subprocess.run([python, "use.py"], **run)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "div_prune"
    done = subprocess.run([python.with_name("vlmopt"), "list"], **run)
    assert "balanced" in done.stdout, done.stderr
    if kind == "wheel":
        mypy = [sys.executable, "-m", "mypy", "--python-executable", str(python), "--follow-imports=silent", "typed.py"]
        done = subprocess.run(mypy, **run)
        revealed = re.findall(r'Revealed type is "(.*)"', done.stdout)
        assert len(revealed) == len(PUBLIC) + 1, done.stdout + done.stderr
        assert not [name for name, kind in zip(PUBLIC, revealed, strict=False) if kind == "Any"]
        optimize = revealed[PUBLIC.index("vlmopt.optimize")]
        assert optimize.startswith("def [Made <: torch.nn.modules.module.Module] (model: Made, policy: ")
        assert revealed[-1] == "int"
    if source:
        words = [python, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", *SHIPPED]
        done = subprocess.run(words, capture_output=True, text=True, cwd=source)
        assert done.returncode == 0, done.stdout + done.stderr


def test_links_of_the_description_lead_out_of_the_repository(built: Path, tmp_path: Path) -> None:
    shutil.unpack_archive(next(built.glob("*.whl")), tmp_path, "zip")
    text = next(tmp_path.glob("*.dist-info/METADATA")).read_text(encoding="utf-8")
    assert "Description-Content-Type: text/markdown" in text
    links = re.findall(r"(!?)\[[^\]]*\]\(([^)\s]+)", text)
    assert len(links) > 10
    repository = "https://github.com/vlmopt/vlmopt"
    for image, target in links:
        assert target.startswith("https://"), target
        inside = target.removeprefix(f"{repository}/blob/main/").removeprefix(
            "https://raw.githubusercontent.com/vlmopt/vlmopt/main/"
        )
        assert inside.startswith(("https://", repository)) or (ROOT / inside.partition("#")[0]).exists(), target
        assert not image or target.startswith("https://raw."), target


def test_sizes_and_names(built: Path, tmp_path: Path) -> None:
    wheel = next(built.glob("*.whl"))
    assert wheel.stat().st_size <= LIMIT
    shutil.unpack_archive(wheel, tmp_path / "wheel", "zip")
    assert sorted(path.name for path in (tmp_path / "wheel").iterdir() if "dist-info" not in path.name) == ["vlmopt"]
    tree = {path.relative_to(ROOT / "vlmopt") for path in (ROOT / "vlmopt").rglob("*.py")}
    tree |= {
        path.relative_to(ROOT)
        for folder in ("pruning", "attention_fix", "apps")
        for path in (ROOT / folder).rglob("*.py")
    }
    inside = {path.relative_to(tmp_path / "wheel" / "vlmopt") for path in (tmp_path / "wheel").rglob("*.py")}
    assert inside == tree
    assert (tmp_path / "wheel" / "vlmopt" / "py.typed").exists()
    source = unpacked(built, tmp_path / "source")
    for name in (
        "tests/conftest.py",
        "examples",
        "vlmopt/checkpoints/tiny-llava/model.safetensors",
        "LICENSE",
        "Makefile",
    ):
        assert (source / name).exists(), name

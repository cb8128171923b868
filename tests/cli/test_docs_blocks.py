"""Every block of the README and of the documentation: Python runs, commands parse, what they name exists."""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import vlmopt
from tests.support.documents import DOCUMENTS, ROOT, name_of, text_of
from vlmopt.attention_fix import SinkProfile
from vlmopt.calibration import Profile
from vlmopt.checks import model_facts
from vlmopt.cli.main import COMMANDS, build_parser
from vlmopt.head_patterns import HeadPatterns
from vlmopt.layer_reuse import LayerReuse
from vlmopt.media import load_image
from vlmopt.policy import Policy
from vlmopt.prompt import image_prompt
from vlmopt.runtime.structure import structure_of

OTHERS = {"accelerate", "cd", "export", "git", "hf", "lmms-eval", "srun", "unzip", "vllm", "wget"}  # not ours to check
SMALL = {  # what stands for a reader's own
    "Qwen/Qwen2.5-VL-3B-Instruct": "tiny-qwen",
    "Qwen/Qwen2-VL-2B-Instruct": str(ROOT / "vlmopt" / "checkpoints" / "tiny-qwen"),
    "runs/focus/scorer": "tiny-qwen",
}


def fences(path: Path, python: bool) -> Iterator[str]:
    """Blocks of Python, or of commands; those marked as text are neither."""
    for language, body in re.findall(r"^```(\w*)\n(.*?)^```", text_of(path), re.MULTILINE | re.DOTALL):
        known = ("", "python", "sh", "text", "mermaid")  # the last has a test of its own, in test_docs.py
        assert language in known, f"{name_of(path)}: nobody checks a block of {language}"
        if language in (["python"] if python else ["", "sh"]):
            yield body


PYTHON = [(f"{name_of(path)}:{i}", code) for path in DOCUMENTS for i, code in enumerate(fences(path, True))]


def commands(path: Path) -> Iterator[list[str]]:
    """Words of every command of a page: lines of blocks, and code in sentences that starts with a program of ours."""
    lines = [line for body in fences(path, False) for line in body.replace("\\\n", " ").splitlines()]
    prose = re.sub(r"^```.*?^```", "", text_of(path), flags=re.MULTILINE | re.DOTALL)
    lines += re.findall(r"`((?:PYTHONPATH=\. )?(?:vlmopt|python|make|pip install) [^`]+)`", prose)
    for line in lines:
        words: list[str] = []
        for word in (*shlex.split(line, comments=True), "&&"):
            if word == "&&":
                if words:
                    yield words
                words = []
            elif not (not words and re.fullmatch(r"[A-Z_]+=.*", word)):
                words.append(word)


COMMAND = [(name_of(path), words) for path in DOCUMENTS for words in commands(path)]


def test_maps_of_the_runtime_name_files_that_exist() -> None:
    runtime = ROOT / "vlmopt" / "runtime"
    page = text_of(ROOT / "docs" / "architecture.md")
    named = set(re.findall(r"(?<![a-z_/])[a-z_]+/[a-z_]+\.py", page[page.index("## One call") :]))
    told = re.findall(r"`([a-z_]+/[a-z_]+)`", text_of(runtime / "__init__.py"))
    named |= {name if (runtime / name).is_dir() else f"{name}.py" for name in told}
    assert len(named) > 10
    assert not [name for name in named if not (runtime / name).exists()]


def test_the_map_of_the_runtime_leaves_no_file_out() -> None:
    """Captures and components are listed in files of their own, `captures/__init__.py` and `components/order.py`."""
    runtime = ROOT / "vlmopt" / "runtime"
    told = text_of(runtime / "__init__.py")
    beside = {path.stem for path in runtime.glob("*.py")} | {
        f"hooks/{path.stem}" for path in runtime.glob("hooks/*.py")
    }
    missing = {
        name for name in beside if not name.endswith("__init__") and not re.search(rf"`{name}(\.[a-z_]+)?`", told)
    }
    assert not missing, f"vlmopt/runtime/__init__.py does not say what {sorted(missing)} are for"


@pytest.fixture(scope="module")
def checkpoint() -> tuple[Any, Any]:
    return vlmopt.load_checkpoint("tiny-qwen")


def measured() -> Profile:
    """The trends that were measured on the checkpoint, and sinks as if it had any."""
    profile = Profile.load(ROOT / "benchmarks" / "profiles" / "tiny-qwen.json")
    sinks = SinkProfile(model=profile.model, samples=1, dims=(0,), tau=5.0, band=(1, 4), first_layer=1)
    return replace(profile, sinks=sinks)


def searched(model: Any) -> HeadPatterns:
    """Head patterns as if every head were dense, and every layer as right with the choice of an earlier one."""
    facts = model_facts(model, structure_of(model))
    depth = facts["layers"]
    reuse = LayerReuse(model=facts, samples=1, errors=tuple((0.0,) * layer for layer in range(depth)))
    return HeadPatterns(facts, (), (None,) * depth, reuse=reuse)


@pytest.mark.parametrize("code", [code for _, code in PYTHON], ids=[name for name, _ in PYTHON])
def test_python(code: str, checkpoint: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block runs with a model at hand, and what it left on the model answers."""
    for theirs, ours in SMALL.items():
        code = code.replace(theirs, ours)
    model, processor = checkpoint
    page = ROOT / "vlmopt" / "synthetic" / "samples" / "page.png"
    shutil.copy(page, tmp_path / "page.png")
    measured().save(tmp_path / "profile.json")
    searched(model).save(tmp_path / "patterns.json")
    monkeypatch.chdir(tmp_path)
    inputs = image_prompt(processor, "Click Save.", [load_image(page).image])
    names: dict[str, Any] = {"vlmopt": vlmopt, "model": model, "processor": processor, "inputs": inputs}
    try:
        exec(code, names)
        names["model"].generate(**names["inputs"], max_new_tokens=2)
    finally:
        vlmopt.restore(model)


@pytest.mark.parametrize(("page", "words"), COMMAND, ids=[f"{page}: {' '.join(words)[:60]}" for page, words in COMMAND])
def test_commands(page: str, words: list[str]) -> None:
    program, rest = words[0], words[1:]
    if program == "vlmopt":
        check_ours(rest)
    elif program == "make":
        assert re.search(rf"^{rest[0]}:", text_of(ROOT / "Makefile"), re.MULTILINE), f"no target {rest[0]}"
    elif program == "python":
        check_script(rest)
    elif program == "pip":
        check_extras(rest)
    else:
        assert program in OTHERS, f"{page}: nobody checks {program}"
        inside = shlex.split(rest[-1]) if program == "srun" else rest
        if "apps/evaluate.py" in inside:
            check_ours(["eval", *inside[inside.index("apps/evaluate.py") + 1 :]])


def check_ours(words: list[str]) -> None:
    """The real parser takes the words; a bare `...` stands for options, and a command without any is only named."""
    words = words[: words.index(">")] if ">" in words else words
    words = [word for i, word in enumerate(words) if word != "..." or words[i - 1].startswith("--")]
    if len(words) == 1:
        assert words[0] in {*COMMANDS, "--help", "--version"}, words
        return
    parser = build_parser([words[0]])
    given = {word.partition("=")[0] for word in words if word.startswith("--")}
    assert given <= options_of(parser, words[0]), given - options_of(parser, words[0])
    try:
        options = parser.parse_args(words)
    except SystemExit:
        pytest.fail(f"vlmopt {' '.join(words)} is refused")
    asked = getattr(options, "policy", None) or []
    for text in [asked] if isinstance(asked, str) else asked:
        if text != "..." and not text.endswith(".json"):
            Policy.load(text)


def options_of(parser: argparse.ArgumentParser, command: str) -> set[str]:
    commands = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    return {name for action in commands.choices[command]._actions for name in action.option_strings}


def check_script(words: list[str]) -> None:
    """The file exists and itself, or what its benchmarks share, knows every option."""
    script = ROOT / words[0]
    assert script.is_file(), script
    known = "".join(
        text_of(path) for path in (script, *script.parent.glob("*common*.py"), *script.parent.glob("*_task.py"))
    )
    for word in words[1:]:
        assert not word.startswith("--") or f'"{word}"' in known, f"{words[0]} knows no {word}"
    for word in words[1:]:
        assert not re.fullmatch(r"(benchmarks|vlmopt)/\S+", word) or (ROOT / word).exists(), word


STARTS = """
import runpy, sys
for script in sys.argv[1:]:
    sys.argv = [script, "--help"]
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        assert not end.code, script
    print("started", script)
"""


def test_benchmarks_of_the_pages_start_as_they_are_called(tmp_path: Path) -> None:
    """From any directory, with nothing but the script's own folder to import from."""
    named = {words[1] for _, words in COMMAND if words[0] == "python" and words[1].startswith("benchmarks/")}
    scripts = sorted(str(ROOT / name) for name in named if "/gpu/" not in name)
    assert len(scripts) > 8
    start = f"import sys; sys.path[:0] = [{str(ROOT / 'benchmarks')!r}]\n{STARTS}"
    words = [sys.executable, "-P" if sys.version_info >= (3, 11) else "-s", "-c", start, *scripts]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [line.split()[1] for line in done.stdout.splitlines() if line.startswith("started ")] == scripts


def check_extras(words: list[str]) -> None:
    offered = text_of(ROOT / "pyproject.toml").partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    for extra in re.findall(r"\[([\w,]+)\]", " ".join(words)):
        assert all(re.search(rf"^{name} = \[", offered, re.MULTILINE) for name in extra.split(",")), extra

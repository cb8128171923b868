"""Run the tests that depend on transformers on every release that vlmopt promises, and write the table for the docs.

Usage: `make test-versions`, or `python tools/test_versions.py [--releases 5.0.0 5.24.0 | --newest] [--groups oracle]`.

One environment per release stands in `.venvs/`: its own transformers with what that needs, everything else from the
environment that runs this script. A group's result is kept there, and the table shows all that are kept.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

from packaging.specifiers import SpecifierSet
from packaging.version import Version

ROOT = Path(__file__).parents[1]
HOMES, TABLE = ROOT / ".venvs", ROOT / "docs" / "transformers.md"
RELEASES = ("4.57.6", "5.0.0", "5.17.0", "5.23.0", "5.24.0")
GROUPS = {
    "oracle": ["tests/families/test_oracle.py"],
    "cache": ["tests/families/test_cache.py"],
    "static": ["tests/families/test_static_cache.py"],
    "kv": [
        f"tests/families/test_{name}.py" for name in ("eviction", "eviction_modes", "eviction_turns", "quantized_cache")
    ],
    "reading": ["tests/families/test_sparse_reading.py"],
    "modes": ["tests/families/test_generation_modes.py"],
    "corrections": ["tests/families/test_corrections_on_families.py"],
    "sparse": ["tests/integration/test_sparse_prefill.py"],
    "tower": ["tests/families/test_tower_pruning.py"],
    "contrasts": ["tests/families/test_second_stream.py", "tests/families/test_second_stream_told.py"],
    "restore": ["tests/families/test_restore.py"],
    "names": ["tests/integration/test_other_releases.py"],
}
# Cells of their grids that no release has broken alone; the pinned release runs all of them in `make test`.
LEFT_OUT = ("-eager", "-unpadded-", "-one-", "-pre-keep", "-mid-keep", "-easy")
BEGIN, END = "<!-- table -->\n", "<!-- end of table -->"


def run(*command: str | Path) -> str:
    """Return the output of a command that must succeed."""
    plain = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    return subprocess.run(
        list(map(str, command)), cwd=ROOT, env=plain, check=True, stdout=subprocess.PIPE, text=True
    ).stdout


def pinned(package: str) -> str:
    found = re.search(rf"^{package}==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert found
    return found[1]


def promised() -> SpecifierSet:
    """Return the releases of transformers that the package asks for."""
    found = re.search(r'"transformers([<>=].*?)"', (ROOT / "pyproject.toml").read_text())
    assert found
    return SpecifierSet(found[1])


def newest() -> str:
    """Return the newest release of transformers on the registry that pip is set up for."""
    listed = re.search(r"\(([\d.]+)\)", run(sys.executable, "-m", "pip", "index", "versions", "transformers"))
    assert listed
    return listed[1]


def environment(release: str) -> Path:
    """Return the Python of the environment of one release, made where it does not exist yet."""
    home = HOMES / release
    python = home / "bin" / "python"
    if not (home / "ready").exists():
        run(sys.executable, "-m", "venv", "--clear", home)
        packages = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
        shared = [path for path in sys.path if path.endswith("site-packages")]
        (Path(packages) / "shared.pth").write_text("\n".join(shared) + "\n")
        wanted = [f"transformers=={release}", f"torch=={pinned('torch')}"]
        run(python, "-m", "pip", "install", "--quiet", *wanted)
        run(python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--editable", ".")
        (home / "ready").touch()
    return python


def test(release: str, groups: list[str]) -> list[str]:
    """Run groups on one release and keep what pytest counted of each; return the tests that failed."""
    python, written = environment(release), HOMES / release / "tests.xml"
    written.unlink(missing_ok=True)
    options = ["-n", "auto", "--tb=no", "-W", "ignore", f"--junitxml={written}"]
    chosen = " and ".join(f"not {name}" for name in LEFT_OUT)
    files = {path: group for group in groups for path in GROUPS[group]}
    command = [python, "-m", "pytest", *options, "-k", chosen, *files]
    ran = subprocess.run(list(map(str, command)), cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"})
    cases = list(ElementTree.parse(written).iter("testcase")) if written.exists() else []
    kept = HOMES / release / "results.json"
    results = json.loads(kept.read_text()) if kept.exists() else {}
    failed, ends = [], {group: list[str]() for group in groups}
    for case in cases:
        path, end = case.get("classname", "").replace(".", "/") + ".py", ending(case)
        if path in files:  # no file that could not be read
            ends[files[path]].append(end)
            failed += [f"{path}::{case.get('name')}"] if end == "failed" else []
    for group in groups:
        counts = [ends[group].count(what) for what in ("passed", "failed", "skipped")]
        print(f"transformers {release}, {group}: {cell(counts)} passed / failed / skipped", flush=True)
        results.pop(group, None)
        if ends[group]:
            results[group] = counts
    kept.write_text(json.dumps(results))
    if ran.returncode and not failed:
        failed = [f"pytest ended with {ran.returncode}"]
    for name in failed:
        print(f"  FAILED {name}", flush=True)
    return failed


def ending(case: ElementTree.Element) -> str:
    """Return how a test of a JUnit report ended."""
    ends = {"failure": "failed", "error": "failed", "skipped": "skipped"}
    return next((ends[part.tag] for part in case if part.tag in ends), "passed")


def cell(counts: list[int]) -> str:
    """Return what the table says of passed, failed and skipped tests."""
    return " / ".join(map(str, counts))


def table() -> str:
    """Return release x group, from the results that are kept."""
    rows = ["| transformers | " + " | ".join(GROUPS) + " |", "|---" * (len(GROUPS) + 1) + "|"]
    for kept in sorted(HOMES.glob("*/results.json"), key=lambda path: Version(path.parent.name)):
        results = json.loads(kept.read_text())
        cells = [cell(results[group]) if group in results else "not run" for group in GROUPS]
        rows.append(f"| {kept.parent.name} | " + " | ".join(cells) + " |")
    return "\n".join(rows) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--releases", nargs="+", help=f"default: {' '.join(RELEASES)} and the newest on the registry")
    parser.add_argument("--newest", action="store_true", help="the newest release alone, if it is not the pinned one")
    parser.add_argument("--groups", nargs="+", choices=GROUPS, default=list(GROUPS))
    chosen = parser.parse_args()
    last = newest() if chosen.newest or not chosen.releases else None
    if chosen.newest and last == pinned("transformers"):
        print(f"transformers {last} is the newest release and the pinned one: nothing more to run")
        return 0
    releases = [last] if chosen.newest else chosen.releases or [*RELEASES, *({last} - set(RELEASES))]
    broken = {release: test(release, chosen.groups) for release in releases}
    beyond = [release for release, failed in broken.items() if failed and release not in promised()]
    for release in beyond:
        print(f"\n!!! transformers {release} is out and vlmopt fails on it; users are held at {promised()} !!!\n")
    if not chosen.newest:
        before, rest = TABLE.read_text().split(BEGIN)
        TABLE.write_text(before + BEGIN + table() + END + rest.split(END)[1])
        print(table())
    return int(any(failed for release, failed in broken.items() if release not in beyond))


if __name__ == "__main__":
    sys.exit(main())

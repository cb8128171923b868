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

from packaging.specifiers import SpecifierSet
from packaging.version import Version

ROOT = Path(__file__).parents[1]
HOMES, TABLE = ROOT / ".venvs", ROOT / "docs" / "transformers.md"
RELEASES = ("4.57.6", "5.0.0", "5.17.0", "5.23.0", "5.24.0")
# By name: the file, and which of its tests are left to the pinned release, which runs them all in `make test`.
GROUPS = {
    "oracle": ("tests/families/test_oracle.py", "not -eager and not -unpadded- and not -one-"),
    "cache": ("tests/families/test_cache.py", ""),
    "modes": ("tests/families/test_generation_modes.py", "not -pre-keep and not -mid-keep"),
    "corrections": ("tests/families/test_corrections_on_families.py", "not -easy"),
    "sparse": ("tests/integration/test_sparse_prefill.py", ""),
    "tower": ("tests/families/test_tower_pruning.py", ""),
    "restore": ("tests/families/test_restore.py", ""),
    "names": ("tests/integration/test_other_releases.py", ""),
}
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


def test(release: str, group: str) -> list[str]:
    """Run one group on one release and keep what pytest counted; return the tests that failed."""
    path, chosen = GROUPS[group]
    options = ["-n", "auto", "-rfE", "--tb=no", "-W", "ignore"]
    command = [environment(release), "-m", "pytest", *options, path, "-k", chosen]
    limited = {**os.environ, "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(list(map(str, command)), cwd=ROOT, env=limited, stdout=subprocess.PIPE, text=True)
    counts = {what.rstrip("s"): int(n) for n, what in re.findall(r"(\d+) (passed|failed|skipped|errors?)", ran.stdout)}
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", ran.stdout, re.MULTILINE)
    if ran.returncode and not failed:
        failed = [f"{path}: pytest ended with {ran.returncode}"]
    kept = HOMES / release / "results.json"
    results = json.loads(kept.read_text()) if kept.exists() else {}
    results[group] = [
        counts.get("passed", 0),
        counts.get("failed", 0) + counts.get("error", 0),
        counts.get("skipped", 0),
    ]
    kept.write_text(json.dumps(results))
    print(
        f"transformers {release}, {group}: {' / '.join(map(str, results[group]))} passed / failed / skipped", flush=True
    )
    for name in failed:
        print(f"  FAILED {name}", flush=True)
    return failed


def table() -> str:
    """Return release x group, from the results that are kept."""
    rows = ["| transformers | " + " | ".join(GROUPS) + " |", "|---" * (len(GROUPS) + 1) + "|"]
    for kept in sorted(HOMES.glob("*/results.json"), key=lambda path: Version(path.parent.name)):
        results = json.loads(kept.read_text())
        cells = [" / ".join(map(str, results[group])) if group in results else "not run" for group in GROUPS]
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
    broken = {release: [name for group in chosen.groups for name in test(release, group)] for release in releases}
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

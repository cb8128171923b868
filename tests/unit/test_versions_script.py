"""What `tools/test_versions.py` makes of a failure: the run fails only on a release that the package lets in."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

PATH = Path(__file__).parents[2] / "tools" / "test_versions.py"


@pytest.fixture
def script(monkeypatch, tmp_path):
    spec = importlib.util.spec_from_file_location("versions_script", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "HOMES", tmp_path)
    monkeypatch.setattr(module, "TABLE", tmp_path / "table.md")
    (tmp_path / "table.md").write_text(f"before\n{module.BEGIN}old\n{module.END}\nafter\n")
    return module


@pytest.mark.parametrize(
    ("newest", "failed", "code", "loud"),
    [("99.0.0", ["a"], 0, True), ("5.24.7", ["a"], 1, False), ("99.0.0", [], 0, False), ("5.24.7", [], 0, False)],
)
def test_only_a_release_that_is_let_in_fails_the_run(script, monkeypatch, capsys, newest, failed, code, loud):
    ran = []
    monkeypatch.setattr(script, "newest", lambda: newest)
    monkeypatch.setattr(script, "test", lambda release, groups: ran.append((release, groups)) or failed)
    monkeypatch.setattr("sys.argv", ["test_versions.py", "--newest", "--groups", "oracle", "cache"])
    assert script.main() == code
    assert ran == [(newest, ["oracle", "cache"])]
    assert (f"!!! transformers {newest} is out and vlmopt fails on it" in capsys.readouterr().out) is loud
    assert script.TABLE.read_text().startswith("before\n")


def test_a_newest_release_that_is_pinned_is_not_run_again(script, monkeypatch, capsys):
    monkeypatch.setattr(script, "newest", lambda: script.pinned("transformers"))
    monkeypatch.setattr(script, "test", lambda *asked: pytest.fail("it ran"))
    monkeypatch.setattr("sys.argv", ["test_versions.py", "--newest"])
    assert script.main() == 0
    assert "nothing more to run" in capsys.readouterr().out


def test_the_table_shows_every_result_that_is_kept(script, monkeypatch):
    for release, results in (("5.9.0", {"oracle": [3, 0, 1]}), ("5.10.0", {"cache": [2, 1, 0]})):
        (script.HOMES / release).mkdir()
        (script.HOMES / release / "results.json").write_text(json.dumps(results))
    monkeypatch.setattr(script, "test", lambda release, groups: [])
    monkeypatch.setattr("sys.argv", ["test_versions.py", "--releases", "5.9.0"])
    assert script.main() == 0
    rows = script.TABLE.read_text().splitlines()
    assert rows[0] == "before"
    assert rows[-1] == "after"
    assert [row.split(" | ")[:3] for row in rows if row.startswith("| 5")] == [
        ["| 5.9.0", "3 / 0 / 1", "not run"],
        ["| 5.10.0", "not run", "2 / 1 / 0"],
    ]


XML = """<testsuites><testsuite>
<testcase classname="tests.families.test_oracle" name="a[1]"/>
<testcase classname="tests.families.test_oracle" name="a[2]"><failure message="x"/></testcase>
<testcase classname="tests.families.test_cache" name="b"><skipped/></testcase>
<testcase classname="tests.families.test_cache" name="c"><error/></testcase>
</testsuite></testsuites>"""


def test_what_pytest_counted_is_kept_by_group(script, monkeypatch, capsys):
    (script.HOMES / "5.9.0").mkdir()
    monkeypatch.setattr(script, "environment", lambda release: Path("python"))
    asked = []

    def run(command, **options):
        asked.extend(command)
        (script.HOMES / "5.9.0" / "tests.xml").write_text(XML)
        return SimpleNamespace(returncode=1)

    monkeypatch.setattr(script.subprocess, "run", run)
    failed = script.test("5.9.0", ["oracle", "cache"])
    assert failed == ["tests/families/test_oracle.py::a[2]", "tests/families/test_cache.py::c"]
    kept = json.loads((script.HOMES / "5.9.0" / "results.json").read_text())
    assert kept == {"oracle": [1, 1, 0], "cache": [0, 1, 1]}
    assert asked[-2:] == ["tests/families/test_oracle.py", "tests/families/test_cache.py"]
    assert "5.9.0, cache: 0 / 1 / 1" in capsys.readouterr().out


def test_a_run_that_never_came_to_its_tests_has_failed(script, monkeypatch):
    (script.HOMES / "5.9.0").mkdir()
    monkeypatch.setattr(script, "environment", lambda release: Path("python"))
    monkeypatch.setattr(script.subprocess, "run", lambda command, **options: SimpleNamespace(returncode=4))
    assert script.test("5.9.0", ["oracle"]) == ["pytest ended with 4"]


CASES = """<testsuites><testsuite>
<testcase classname="tests.families.test_eviction" name="a"/>
<testcase classname="tests.families.test_quantized_cache" name="b"><failure/></testcase>
<testcase classname="tests.families.test_quantized_cache" name="c"><skipped/></testcase>
<testcase classname="tests.families.test_oracle" name="d"/>
<testcase classname="" name="tests.families.test_cache"><error/></testcase>
</testsuite></testsuites>"""


def test_a_group_counts_all_of_its_files(script, monkeypatch):
    def run(command, **settings):
        (script.HOMES / "5.9.0" / "tests.xml").write_text(CASES)
        return SimpleNamespace(returncode=1)

    (script.HOMES / "5.9.0").mkdir()
    monkeypatch.setattr(script, "environment", lambda release: "python")
    monkeypatch.setattr(script.subprocess, "run", run)
    assert script.test("5.9.0", ["oracle", "kv", "cache"]) == ["tests/families/test_quantized_cache.py::b"]
    kept = json.loads((script.HOMES / "5.9.0" / "results.json").read_text())
    assert kept == {"oracle": [1, 0, 0], "kv": [1, 1, 1]}


def test_every_group_has_its_files_and_its_question(script):
    asked = (PATH.parents[1] / "docs" / "transformers.md").read_text()
    for group, files in script.GROUPS.items():
        assert all((PATH.parents[1] / file).is_file() for file in files)
        assert f"\n| {group} | " in asked

"""The folder apps/ is a Space and a container: its header, its recipe and what it starts say the same."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import streamlit as st
import tomllib
import yaml

from tests.support.demo import opened, quick, texts, typed  # noqa: F401 (quick is a fixture)
from vlmopt.apps.page.sidebar import foreign
from vlmopt.checkpoints import bundled
from vlmopt.cli import demo
from vlmopt.cli.main import build_parser

ROOT = Path(__file__).resolve().parents[2]
APPS = ROOT / "apps"
RECIPE = (APPS / "Dockerfile").read_text(encoding="utf-8")


def test_the_header_names_the_port_that_the_recipe_serves() -> None:
    _, header, _ = (APPS / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    space = yaml.safe_load(header)
    assert space["sdk"] == "docker"
    assert len(space["short_description"]) <= 60
    assert f"--server.port={space['app_port']}" in started()
    assert f"EXPOSE {space['app_port']}" in RECIPE
    assert f"localhost:{space['app_port']}/_stcore/health" in RECIPE


def started() -> list[str]:
    """The command of the container."""
    (command,) = re.findall(r"^CMD (\[.*?\])$", RECIPE.replace("\\\n", ""), re.MULTILINE)
    words: list[str] = json.loads(command)
    return words


def test_what_the_recipe_names_is_there() -> None:
    words = started()
    assert (APPS / words[words.index("run") + 1]).is_file()
    known = set(st.config.get_config_options())
    settings = [word.removeprefix("--").split("=")[0] for word in words[: words.index("--")] if word.startswith("--")]
    assert set(settings) <= known
    assert "--server.address=0.0.0.0" in words  # the file beside the page says localhost
    own = words[words.index("--") + 1 :]
    assert vars(build_parser(["demo"]).parse_args(["demo", *own]))["bundled_only"] is True
    assert all(
        (APPS / name).is_file() for name in re.findall(r"^COPY --chown=user ([\w.]+\.txt)", RECIPE, re.MULTILINE)
    )
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (line,) = [line for line in (APPS / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
    extras = re.match(r"vlmopt\[([\w,]+)\]", line)
    assert extras is not None
    assert set(extras[1].split(",")) <= set(project["optional-dependencies"])


def test_the_command_line_can_bound_the_page_too() -> None:
    words = demo.command(build_parser(["demo"]).parse_args(["demo", "--bundled-only"]))
    assert words[-2:] == ["--", "--bundled-only"]
    assert "--" not in demo.command(build_parser(["demo"]).parse_args(["demo"]))


def test_a_bounded_page_loads_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["demo.py", "--bundled-only"])
    page = opened()
    assert page.selectbox(key="model").options == bundled()
    assert not page.button(key="run").disabled
    typed(page, "focus_ui:scorer=nobody/scorer,keep_ratio=0.5")
    assert page.button(key="run").disabled
    assert "loads the bundled checkpoints alone, not nobody/scorer" in texts(page)


def test_checkpoints_in_a_policy_are_found_wherever_they_stand() -> None:
    inner = {"method": "pospad", "marker_from": "a/b"}
    assert foreign({"prune": [{"method": "debias", "host": inner}]}) == "a/b"
    assert foreign({"prune": [{"method": "focus_ui", "scorer": "tiny-qwen"}], "kv": None}) is None

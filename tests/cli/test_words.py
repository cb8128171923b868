"""The command line without a model: what it lists, how fast, and what it answers to words that it does not know."""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import vlmopt
from vlmopt import catalogue, methods
from vlmopt.attention_fix import SinkProfile
from vlmopt.attention_fix.base import Tower
from vlmopt.calibration import Profile
from vlmopt.cli import listing
from vlmopt.cli import main as cli
from vlmopt.head_patterns import HeadPatterns
from vlmopt.kernels.patterns import MinP
from vlmopt.policy import Policy
from vlmopt.prefill import SparsePrefill
from vlmopt.pruning import AttentionRows, Debias, FastV


def test_list_and_policy_show(capsys: pytest.CaptureFixture[str]) -> None:
    shown = {}
    for what in ([], ["presets"], ["fastv"], ["methods"], ["families"], ["checkpoints"], ["safe"]):
        assert cli.main(["list", *what]) == 0
        shown[" ".join(what)] = capsys.readouterr().out
    for what, text in (("", "METHODS"), ("", "fastv"), ("", "PRESETS"), ("", "uniform-25"), ("", "balanced"),
                       ("fastv", "keep_ratio"), ("fastv", "[> 0, <= 1]"), ("methods", "pyramid_drop"),
                       ("families", "qwen2_5_vl"), ("checkpoints", "tiny-qwen"), ("safe", "sinks:")):  # fmt: skip
        assert text in shown[what]
    for what, lines in (("", 40), ("presets", 40), ("fastv", 40)):  # one screen
        assert len(shown[what].splitlines()) <= lines
        assert max(map(len, shown[what].splitlines())) <= 80
    assert cli.main(["list", "presets", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["presets"]}
    assert rows["dense"]["policy"]["prune"] == []
    assert cli.main(["list", "fastvv"]) == 2
    assert "did you mean 'fastv'" in capsys.readouterr().err
    assert cli.main(["list", "MMTok"]) == 2  # as its class and its paper are written
    assert "did you mean 'mmtok'" in capsys.readouterr().err
    assert cli.main(["list", "tiny-qwen"]) == 2  # there is one, but nothing more to say about it
    assert "no preset or method is called 'tiny-qwen'" in (said := capsys.readouterr().err)
    assert "`vlmopt list checkpoints`" in said
    assert cli.main(["policy", "show", "uniform-25"]) == 0
    assert vlmopt.Policy.load(json.loads(capsys.readouterr().out)) == vlmopt.presets()["uniform-25"]


@pytest.mark.parametrize("name", [entry.name for entry in catalogue.built_in()])
def test_pages_of_methods_break_lines_between_words(name: str) -> None:
    entry = methods.entry(methods.find(name))
    page = listing.method_page(entry)
    assert max(map(len, page.splitlines()[1:])) <= listing.WIDTH
    shown, told = page.split(), [entry["summary"], *(s.get("help", "") for s in entry["settings"])]
    choices = [" | ".join(s["choices"]) for s in entry["settings"] if "choices" in s]
    for word in " ".join(told + choices).split():
        assert any(word in part for part in shown), word


def test_version_and_help_run_as_a_program() -> None:
    for words_, text in (("--version", f"vlmopt {vlmopt.__version__}"), ("--help", "train-focusui")):
        done = subprocess.run([sys.executable, "-m", "vlmopt", words_], capture_output=True, text=True)
        assert done.returncode == 0
        assert text in done.stdout


WITHOUT_TORCH = """
import resource, sys
from vlmopt.cli.main import main
try:
    main(sys.argv[1:])
except SystemExit:
    pass
loaded = {"torch", "transformers", "numpy"} & set(sys.modules)
assert not loaded, loaded
print("cpu", resource.getrusage(resource.RUSAGE_SELF).ru_utime)
"""


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_option_says_in_words_of_its_own_what_it_is(command: str) -> None:
    """`--batch-size N  of all processes` makes a reader put the sentence together."""
    for action in cli.build_parser([command]).commands[command]._actions:
        first, *rest = (action.help or "").split()
        assert rest or action.choices, action.option_strings
        assert first not in {"default", "of", "over", "for", "that", "may"}, action.option_strings


@pytest.mark.parametrize(
    "words_",
    [
        "--help",
        "list",
        "rum",
        "list presets",
        "list fastvv",
        "list balanced",
        "run --help",
        "run --imge a.png",
        "run --question What? --policy balancd",
        "eval --policy gentle balancd",
        "policy fastvv:keep_ratio=0.1",
        "policy fastv:keepratio=0.3",
        "eval --data x --out y --policy gentle fastv:keep_rato=.3",
        "estimate --policy fastv:keep_rato=.3",
        "tune --data x --out y --base fastv:keep_rato=.3",
        "run --question q --policy balanced",
        "eval --out y",
        "calibrate --out y",
        "search-patterns --out y",
        "show-pattern --pattern min_pp",
        "show-pattern --pattern min_p:taw=1",
        "show-pattern",
        "serve tiny-qwen --port 0",
        "serve tiny-qwn",
        "run --question q --image nowhere.png",
        "run --question q --image nowhere.png --policy nowhere.json",
        "eval --data worlds --out y --policy focus_ui:scorr=runs/scorer,keep_ratio=.1",
        "eval --data x --out y --model tiny-qwn",
        "tune --data x --out y --model tiny-qwn",
        "tune --out y",
        "calibrate --images worlds --out y --model tiny-qwn",
        "search-patterns --video nowhere.mp4 --out y",
        "show-pattern --image nowhere.png",
        "train-focusui --out y --model tiny-qwn",
        "estimate --device h1000",
        "estimate --model qwn",
        "eval --out y --data worldss",
        "calibrate --images wrlds --out y",
        "calibrate --images worlds --out y --host fastvv:2",
        "",
        "eval --help",
        "completion bash",
    ],
)
def test_what_needs_no_model_answers_at_once(words_: str) -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH, *words_.split()], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[-1]) <= 0.4


def test_unknown_commands_and_settings_name_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["rum", "--image", "a.png"]) == 2
    assert "unknown command 'rum' (did you mean 'run'?)" in capsys.readouterr().err
    assert cli.main(["help"]) == 2
    assert "unknown command 'help' (did you mean '--help'" in capsys.readouterr().err
    assert cli.main(["--hlep"]) == 2
    assert "unknown option '--hlep' (did you mean '--help'?); see `vlmopt --help`" in capsys.readouterr().err
    assert cli.main(["run", "--question", "What?", "--polcy=dense"]) == 2
    said = capsys.readouterr().err
    assert "unknown option '--polcy' (did you mean '--policy'" in said
    assert "see `vlmopt run --help`" in said
    assert cli.main(["run", "--qestion", "What?"]) == 2  # before what is missing is asked for
    assert "unknown option '--qestion' (did you mean '--question'" in capsys.readouterr().err
    assert cli.main(["run", "--question", "What?", "a.png"]) == 2
    assert "unknown arguments 'a.png'; see `vlmopt run --help`" in capsys.readouterr().err
    assert cli.main(["policy", "show", "fastv:keep_ration=0.1"]) == 2
    assert "did you mean 'keep_ratio'" in capsys.readouterr().err
    assert cli.main(["show-pattern", "--pattern", "min_pp"]) == 2  # before what is missing is asked for
    assert "unknown method 'min_pp' (did you mean 'min_p'" in capsys.readouterr().err
    assert cli.main(["policy", "show", "cd_pruner:keep_ratio=0.5,relevance=nne"]) == 2
    assert "relevance must be one of text, none; got 'nne' (did you mean 'none'?)" in capsys.readouterr().err
    with pytest.raises(TypeError, match=r"FastV: unknown setting 'keep_ration' \(did you mean 'keep_ratio' or"):
        FastV(keep_ration=0.1)


def test_without_a_command_help_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    assert "train-focusui" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command", ["run --question What?", "eval --out run --data worlds", "estimate", "serve tiny-qwen"]
)
@pytest.mark.parametrize(
    ("policy", "says"),
    [
        ("balancd", "unknown preset 'balancd' (did you mean 'balanced'?)"),
        ("FastV:keep_ratio=0.1,layer=2", "unknown method 'FastV' (did you mean 'fastv'"),
        ("balancd+fastv:keep_ratio=0.1", "unknown method 'balancd' (did you mean 'balanced'"),
        ("", "unknown preset ''"),
    ],
)
def test_every_command_refuses_a_policy_before_torch(
    command: str, policy: str, says: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(name: str, package: str) -> Any:
        assert name.startswith(".arguments."), f"{name} was loaded"
        return importlib.import_module(name, package)

    monkeypatch.setattr(cli, "import_module", load)
    assert cli.main([*command.split(), "--policy", policy]) == 2
    assert says in capsys.readouterr().err


def test_a_question_may_begin_with_dashes(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "--question", "--save or --open, which is left?"]) == 2
    assert "give --image FILE" in capsys.readouterr().err


def test_every_choice_names_the_nearest_value(capsys: pytest.CaptureFixture[str]) -> None:
    """Of all commands: whatever has choices reads its values with them."""
    parser = cli.build_parser()
    seen = 0
    for command in parser.commands.values():
        for action in command._actions:
            if action.choices:
                value = str(next(iter(action.choices)))
                assert action.type(value) == value
                with pytest.raises(argparse.ArgumentTypeError, match=f"did you mean .*'{value}'.*choose "):
                    action.type(f"{value}x")
                seen += 1
    assert seen > 10
    with pytest.raises(SystemExit):
        cli.main(["run", "--question", "What?", "--image", "a.png", "--dtype", "flaot16"])
    assert "unknown value 'flaot16' (did you mean 'float16' or 'bfloat16'?); choose auto," in capsys.readouterr().err


def test_policy_prints_with_and_without_show(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["policy", "show", "balanced"]) == 0
    shown = capsys.readouterr().out
    assert cli.main(["policy", "balanced"]) == 0
    assert capsys.readouterr().out == shown
    assert json.loads(shown)["prune"] == [{"method": "div_prune", "keep_ratio": 0.25}]


MADE = [
    (Policy, {"prun": []}, "did you mean 'prune'"),
    (SparsePrefill, {"min_length": 1}, "did you mean 'min_len'"),
    (HeadPatterns, {"pattern": ()}, "did you mean 'patterns'"),
    (Profile, {"sink": None}, "did you mean 'sinks'"),
    (SinkProfile, {"dim": ()}, "did you mean 'dims'"),
    (AttentionRows, {"layr": 1}, "did you mean 'layer'"),
    (Tower, {"blok": 1}, "did you mean 'block'"),
]


@pytest.mark.parametrize(("cls", "settings", "says"), MADE, ids=[row[0].__name__ for row in MADE])
def test_what_people_make_names_the_nearest_setting(cls: Any, settings: dict[str, Any], says: str) -> None:
    with pytest.raises(TypeError, match=rf"^{cls.__name__}: unknown setting .*\({says}.*; settings: "):
        cls(**settings)


def test_a_setting_without_a_name_says_how_it_is_written() -> None:
    with pytest.raises(
        TypeError, match=r"^FastV: 0.25 is given without a name; write FastV\(keep_ratio=\.\.\.\); settings: "
    ):
        FastV(0.25)
    with pytest.raises(TypeError, match=r"^Debias: 0.5 is given without a name; write Debias\("):
        Debias(FastV(keep_ratio=0.25, layer=2), 0.5)
    with pytest.raises(TypeError, match="SparsePrefill: MinP"):
        SparsePrefill(MinP())


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    """More than a pipe holds, so that writing meets the closed end."""
    line = f"{sys.executable} -m vlmopt completion zsh | head -n 1"
    done = subprocess.run(line, shell=True, capture_output=True, text=True)
    assert done.stdout.startswith("#compdef")
    assert not done.stderr


@pytest.mark.parametrize(
    ("words_", "completed"),
    [
        ("ru", "run"),
        ("run --max-n", "--max-new-tokens"),
        ("run --policy bal", "balanced"),
        ("eval --policy balanced fastvi", "fastvid"),
        ("list snap", "snap_kv"),
        ("run --image page.p", "page.png"),
        ("eval --out thi", "this"),
    ],
)
def test_a_shell_completes(words_: str, completed: str, tmp_path: Path) -> None:
    (tmp_path / "page.png").touch()
    (tmp_path / "this").mkdir()
    line = ["vlmopt", *words_.split()]
    script = f"""
eval "$({sys.executable} -m vlmopt completion bash)"
COMP_WORDS=({" ".join(line)}) COMP_CWORD={len(line) - 1}
_shtab_vlmopt vlmopt {line[-1]} {line[-2]}
echo "${{COMPREPLY[@]}}"
"""
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.split() == [completed], done.stderr


def test_completion_knows_commands_and_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    assert "search-patterns" in script
    assert "--max-new-tokens" in script

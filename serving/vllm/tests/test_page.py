"""The table of selectors in docs/serving.md: every method of vlmopt, in every family, as it says. No engine."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from vlmopt import Policy
from vlmopt.pruning import registry
from vlmopt_vllm.policies import AtStart

from .engines import inspect_here
from .test_parity import BARE, FAMILIES, FLAT_POSITIONS, TEXT, fitted
from .test_video import clip

PAGE = (Path(__file__).parents[3] / "docs" / "serving.md").read_text(encoding="utf-8")
COLUMNS = {  # of the table
    "qwen2_vl": "Qwen2-VL, Qwen2.5-VL",
    "qwen2_5_vl": "Qwen2-VL, Qwen2.5-VL",
    "qwen3_vl": "Qwen3-VL, Qwen3.5",
    "qwen3_5": "Qwen3-VL, Qwen3.5",
    "tiny_llava": "LLaVA-1.5",
    "llava_onevision": "LLaVA-OneVision",
    "internvl": "InternVL",
}
BLOCKS = {name: block for name, (_, block) in FAMILIES.items()} | {"qwen3_5": -2}


def table(first: str) -> list[dict[str, str]]:
    """Rows of the page's table whose head begins so, by the names of columns."""
    lines = PAGE[PAGE.index(first) :].split("\n\n")[0].splitlines()
    head, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    return [dict(zip(head, row, strict=True)) for row in rows]


SERVED, REFUSED = table("| | decides |"), table("| | why |")


def named(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def method(line: str) -> dict[str, Any]:
    """A method as the table writes it, which keeps a part of any image; `padding=` stands for any method with it."""
    line = "uniform:padding=blank" if line == "padding=" else line
    sizes = {"pixel_redundancy": "tolerance=1", "hiprune": "keep_ratio=0.33,object_layer=1"}
    own = sizes.get(line, "keep_ratio=0.33")
    found: dict[str, Any] = Policy.load(f"{line},{own}" if ":" in line else f"{line}:{own}").to_dict()["prune"][0]
    return found


def test_every_method_is_named_as_served_or_as_refused_for_its_reason():
    served = {method(line)["method"] for row in SERVED for line in named(row[""])}
    reading, inside = ({line.partition(":")[0] for line in named(row[""])} for row in REFUSED[:2])
    assert served | reading | inside >= set(registry)
    assert not inside & served
    for name in reading & set(registry):
        made = {"method": name, "keep_ratio": 0.3, **({"scorer": "x"} if name == "focus_ui" else {})}
        with pytest.raises(ValueError, match="reads the question"):
            AtStart.of(None).asked({"vlmopt": made})
    for name in inside & set(registry):
        own = {"host": {"method": "fastv", "keep_ratio": 0.3}} if name == "debias" else {"keep_ratio": 0.3}
        with pytest.raises(ValueError, match="lies inside the LLM"):
            AtStart.of(None).asked({"vlmopt": {"method": name, **own}})


def test_the_table_says_where_a_choice_is_made():
    for row in SERVED:
        for line in named(row[""]):
            policy = AtStart.of(None).asked({"vlmopt": method(line)})
            place = "after" if policy.late else "before"
            assert row["decides"].startswith(place), line
            assert ("from tower or projector" in row["decides"]) == bool(policy.signals), line
            assert ("the tower sees less" in row["decides"]) == (line in ("pixel_redundancy", "resize"))


@pytest.mark.parametrize("name", COLUMNS)
def test_every_method_is_served_or_refused_as_the_table_says(name, processed, checkpoints, images):
    inspect_here(checkpoints(name))
    data = {"images": {"image": images[1:]}}
    if name != "tiny_llava":  # which vLLM gives no videos
        array, facts = clip(112, 112)
        data["videos"] = {"video": [(array, {**facts, "do_sample_frames": False})]}
    wrong = []
    for row in SERVED:
        for line in named(row[""]):
            policy = fitted(method(line), name, BLOCKS[name])
            for kind, given in data.items():
                text = (BARE if name in FLAT_POSITIONS[1:] else TEXT).replace("image_pad", f"{kind[:-1]}_pad")
                try:
                    dense, pruned = (processed(name, given, text, {"vlmopt": p}) for p in (None, policy))
                    found = "served" if len(pruned["prompt_token_ids"]) < len(dense["prompt_token_ids"]) else "whole"
                except ValueError as error:
                    found = "refused" if str(error).startswith("vlmopt: ") else str(error)
                if found != ("served" if kind in row[COLUMNS[name]] else "refused"):
                    wrong.append((line, kind, found))
    assert not wrong

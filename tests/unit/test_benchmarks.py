"""What the benchmarks say of a difference, and which images they ask about."""

import json
import random
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))


def blocks(*marks):
    return {number: {"marks": text, "kinds": ["colour"] * len(text)} for number, text in enumerate(marks)}


def test_a_difference_is_paired_over_the_images_of_all_blocks():
    from pruning_tables import difference

    before = blocks("1100" * 10, "1100" * 10, "1111" * 10, "0000" * 10)
    after = blocks("1110" * 10, "1100" * 10, "0111" * 10)
    found = difference(before, after)
    assert (found.blocks, found.images) == (3, 120)  # the fourth block was asked of one method alone
    assert found.over.value == pytest.approx(0)
    assert -0.1 < found.over.low < 0 < found.over.high < 0.1
    assert (found.lowest, found.highest) == (-0.25, 0.25)
    assert str(found).startswith("+0.0 (-")
    assert str(found).endswith("-25.0 to +25.0")


def test_a_gain_is_set_in_bold_where_its_interval_leaves_out_zero():
    from pruning_tables import difference

    lost = difference(blocks(*["1111"] * 3), blocks(*["0101"] * 3))
    assert str(lost).startswith("**-50.0 (")
    assert lost.over.high < 0
    assert str(difference(blocks(*["1100"] * 3), blocks(*["1100"] * 3))) == "same marks"  # no interval of width 0


def test_fewer_than_three_blocks_make_no_difference():
    from pruning_tables import difference

    with pytest.raises(ValueError, match="three or more"):
        difference(blocks("1100", "1100", "1100"), blocks("1110", "1111"))


def test_blocks_of_other_sizes_are_not_paired():
    from pruning_tables import difference

    with pytest.raises(ValueError, match="other questions"):
        difference(blocks("11", "11", "11"), blocks("1111", "1111", "1111"))


def test_what_a_name_adds_is_compared_with_the_rest_of_the_name():
    from pruning_tables import base_of
    from pruning_variants import variants

    names = set(variants(0.5, True, None))
    assert {base_of(name) for name in names} <= names | {None}
    assert base_of("fastv + PAS + own trend") == "fastv + PAS"
    assert base_of("fastv") is None


def test_tables_show_the_newest_row_of_every_block(tmp_path, monkeypatch):
    import pruning_tables

    monkeypatch.setattr(pruning_tables, "RESULTS", tmp_path)
    facts = {"layers": 0.4, "slope": 0.5, "padding": None}
    with (tmp_path / "pruning_quality.jsonl").open("w") as file:
        for block, text in [(0, "0000"), (0, "1100"), (1, "1100"), (2, "1100")]:
            rows = [
                {"method": "dense", "keep_ratio": 1.0, "marks": "1111", **facts},
                {"method": "random", "keep_ratio": 0.1, "marks": "1000", **facts},
                {"method": "fastv", "keep_ratio": 0.1, "marks": text, **facts},
                {"method": "fastv + trend", "keep_ratio": 0.1, "marks": "1110", **facts},
            ]
            file.write(json.dumps({"checkpoint": "toy", "block": block, "kinds": ["count"] * 4, "rows": rows}) + "\n")
    said = pruning_tables.tables()
    assert "| fastv | 50.0 ± " in said
    assert " | 40 % | +0.50 |  | 12 |" in said
    assert "| fastv | random | +25.0 (+0.0 to +50.0) +25.0 to +25.0 | 3 | 12 |" in said
    assert "| fastv + trend | fastv | +25.0 (+0.0 to +50.0) +25.0 to +25.0 | 3 | 12 |" in said
    assert "| fastv + trend | random | **+50.0 (" in pruning_tables.tables("random")


def test_the_page_shows_what_was_measured():
    from pruning_tables import BEGIN, END, PAGE, tables

    assert f"{BEGIN}{tables()}{END}" in PAGE.read_text(encoding="utf-8")


def test_every_question_has_an_image_of_its_own():
    from pruning_quality import BLOCK_SEEDS, FIRST_SEED, KINDS, questions

    first, second = (questions(len(KINDS), FIRST_SEED + block * BLOCK_SEEDS, "qwen2_5_vl") for block in range(2))
    drawn = {world.image.tobytes() for world, _ in first + second}
    assert len(drawn) == 2 * len(KINDS)
    assert sorted(q.kind for _, q in first) == sorted(kind for _, kind in KINDS)


@pytest.mark.parametrize("cell", [1, 14])
def test_windows_hold_their_target_and_begin_where_asked(cell):
    from grounding import SIDE, start

    for number in range(200):
        rng = random.Random(number)
        low, length, whole = rng.uniform(0, 1200), rng.uniform(1, 60), 1280
        begin = start(rng, low, length, whole, cell)
        assert begin % cell == 0
        assert begin <= low
        assert low + length <= begin + SIDE


def test_the_pages_in_the_repository_are_an_even_part_of_all():
    from pages import FOLDER, LIST, MAKE
    from vlmopt.synthetic.web import HELD_OUT
    from vlmopt.synthetic.web.screenspot import plan, read_targets

    rows = json.loads((FOLDER / LIST).read_text())
    names = list(dict.fromkeys(row["img_filename"] for row in rows))
    assert names == [rendering.name for rendering in plan("held-out", 3 * len(HELD_OUT), [(1280, 800)], 0)]
    assert rows == [row for name in names for row in read_targets(FOLDER / name)]
    assert sum(path.stat().st_size for path in FOLDER.iterdir() if path.is_file()) < 3 * 2**20
    assert MAKE in (FOLDER / "README.md").read_text()


def test_a_part_of_the_pages_is_said_and_named(tmp_path, capsys):
    from grounding import real
    from pages import FOLDER, LIST, MAKE, WHOLE, pages

    rows = json.loads((FOLDER / LIST).read_text())
    (tmp_path / LIST).write_text(json.dumps(rows))
    part = pages(tmp_path)
    assert part.name.startswith("36 images, list ")
    assert MAKE in capsys.readouterr().err
    with pytest.raises(ValueError, match="319 targets, not 320"):
        real(part, 320)

    (tmp_path / "whole").mkdir()
    many = [row | {"img_filename": f"{number}.png"} for number, row in enumerate(rows[:WHOLE])]
    (tmp_path / "whole" / LIST).write_text(json.dumps(many))
    whole = pages(tmp_path)
    assert (whole.folder, whole.images) == (tmp_path / "whole", WHOLE)
    assert whole.name.split(", ")[1] != part.name.split(", ")[1]
    assert not capsys.readouterr().err


def test_anchors_go_by_the_sections_of_the_rotation():
    import torch
    from position_anchors import mean_angles

    from vlmopt.pruning.base import top

    theta = 1e4 ** -(torch.arange(0, 8, 2) / 8)
    places = 5 + torch.cartesian_prod(torch.arange(1), torch.arange(3), torch.arange(4))
    cos, sin = mean_angles(places, theta, [1, 1, 2])
    assert top(cos, 2).tolist() == [0, 1]
    assert top(sin, 2).tolist() == [10, 11]
    whole = (places[:, None] * theta[:, None]).cos().mean((1, 2))  # axes that the model does not mix, averaged
    assert top(whole, 1).tolist() == [5]


def test_a_constant_on_yes_gives_as_many_answers_of_yes():
    from hallucination_tables import biased

    greedy = {"said": {"random": "yn", "popular": "nn"}, "margins": {"random": [-1.0, 0.5], "popular": [0.2, 3.0]}}
    cell = {"said": {"random": "yn", "popular": "yy"}}
    assert biased(cell, greedy) == {"random": "yy", "popular": "yn"}
    fewer = {"said": {"random": "nn", "popular": "nn"}}
    assert biased(fewer, greedy) == {"random": "nn", "popular": "nn"}


def test_blocks_are_pooled_and_other_weights_left_out():
    from hallucination_tables import fractions, methods, polled

    def cell(method, seed, weights="new", said="y" * 72):
        counts = {name: [1] * 12 for name in COUNTS}
        return {
            "checkpoint": "tiny-qwen", "method": method, "weights": weights, "lexicon": "", "chair": counts,
            "said": dict.fromkeys(SPLITS, said), "task": {"pictures": 12, "polled": 12, "company": 0.5, "seed": seed},
        }  # fmt: skip

    from vlmopt.metrics.chair import COUNTS
    from vlmopt.synthetic.polling import SPLITS

    measured = [cell("greedy", 1), cell("greedy", 9), cell("PAI", 1), cell("PAI", 9), cell("VHR", 1, "old")]
    rows = methods(measured)["tiny-qwen"]
    assert {name: len(mine) for name, mine in rows.items()} == {"greedy": 2, "PAI": 2}
    assert len(fractions(rows["PAI"], "degraded", "mine")["chair_s"][0]) == 18  # three in four
    labels, _, images = polled(rows["PAI"], "degraded", "random", "mine")
    assert len(labels) == 18 * 6
    assert len(set(images)) == 18

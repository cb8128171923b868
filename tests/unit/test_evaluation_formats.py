"""Every data format from a file of its own, and what is refused with which words."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.fixtures.evaluation import (
    coco_files,
    lines,
    manifest_file,
    plain_image,
    pope_files,
    screenspot_file,
)
from vlmopt.evaluation.boxes import CONVENTIONS, corners
from vlmopt.evaluation.data import Data, Source
from vlmopt.evaluation.loading import load_data
from vlmopt.synthetic.hallucination import DEGRADATIONS
from vlmopt.synthetic.writing import write as write_worlds


def loaded(tmp_path: Path, *data: Path | str, **changes: Any) -> Data:
    return load_data(Source(data=[str(d) for d in data], run=tmp_path / "run", **changes))


def test_samples_without_ids_are_named_by_their_place(tmp_path: Path) -> None:
    plain_image(tmp_path / "a.png")
    for name in ("first", "second"):
        lines(
            tmp_path / f"{name}.jsonl",
            [{"image": "a.png", "question": "What?"}, {"image": "a.png", "question": "Where?"}],
        )
    found = loaded(tmp_path, tmp_path / "first.jsonl", tmp_path / "second.jsonl").samples
    assert [sample.id for sample in found] == ["first/1", "first/2", "second/1", "second/2"]


def test_pope_splits_have_ids_of_their_own(tmp_path: Path) -> None:
    data = loaded(tmp_path, *pope_files(tmp_path), images=str(tmp_path / "images"))
    assert data.format == "pope"
    assert len(data.samples) == 3 * 3 * 6
    assert {s.category for s in data.samples} == {"random", "popular", "adversarial"}
    first = data.samples[0]
    assert (first.id, first.kind, first.answer) == ("random/1", "yes_no", "yes")
    assert Path(first.images[0]).is_absolute()
    assert sum(s.answer == "yes" for s in data.samples) * 2 == len(data.samples)


def test_a_label_of_pope_is_yes_or_no(tmp_path: Path) -> None:
    rows = [{"question_id": 1, "image": "a.png", "text": "?", "label": "maybe"}]
    with pytest.raises(ValueError, match=r"x.json, entry 1: label is 'maybe'"):
        loaded(tmp_path, lines(tmp_path / "x.json", rows))


def test_chair_takes_its_truth_from_instances_and_reference_captions(tmp_path: Path) -> None:
    instances, captions = coco_files(tmp_path)
    data = loaded(tmp_path, instances, captions, images=str(tmp_path / "val2014"))
    assert data.format == "chair"
    assert [s.objects for s in data.samples] == [("dog", "person", "bench")] * 3
    assert data.lexicon is not None
    assert "own table" in data.lexicon.source
    assert not data.notes
    alone = loaded(tmp_path, instances, images=str(tmp_path / "val2014"))
    assert alone.samples[0].objects == ("dog",)
    assert "3 of 3 images have no reference captions" in alone.notes[0]


def test_chair_refuses_what_its_lexicon_does_not_know(tmp_path: Path) -> None:
    instances, captions = coco_files(tmp_path)
    coco = json.loads(instances.read_text())
    coco["categories"][1]["name"] = "wombat"
    instances.write_text(json.dumps(coco))
    with pytest.raises(ValueError, match=r"does not know the categories \['wombat'\]"):
        loaded(tmp_path, instances, captions, images=str(tmp_path / "val2014"))
    table = tmp_path / "synonyms.txt"
    table.write_text("wombat, marsupial\nperson, man\nbench\n")
    data = loaded(tmp_path, instances, captions, images=str(tmp_path / "val2014"), synonyms=str(table))
    assert data.samples[0].objects == ("wombat", "person", "bench")
    del coco["images"][0]["file_name"]
    instances.write_text(json.dumps(coco))
    with pytest.raises(ValueError, match="images need id and file_name"):
        loaded(tmp_path, instances, images=str(tmp_path / "val2014"))


@pytest.mark.parametrize("kind", CONVENTIONS)
def test_boxes_of_every_convention_mean_the_same(kind: str) -> None:
    raw = {
        "xyxy": (10, 20, 40, 80),
        "xywh": (10, 20, 30, 60),
        "xyxy-unit": (0.1, 0.1, 0.4, 0.4),
        "xywh-unit": (0.1, 0.1, 0.3, 0.3),
    }[kind]
    assert corners(raw, kind, (100, 200)) == pytest.approx((10, 20, 40, 80))


def test_screenspot_by_platform_and_type(tmp_path: Path) -> None:
    file = screenspot_file(tmp_path)
    data = loaded(tmp_path, file, images=str(tmp_path / "images"), boxes="xywh")
    assert [s.category for s in data.samples] == ["mobile/text", "mobile/icon", "mobile/text"]
    assert data.samples[0].extra["groups"] == ["platform mobile", "type text"]
    assert data.samples[0].extra["data_source"] == "android"
    pro = screenspot_file(tmp_path / "pro", corners=True)
    again = loaded(tmp_path, pro, images=str(tmp_path / "images"), boxes="xyxy")
    for one, two in zip(data.samples, again.samples, strict=True):
        assert one.box is not None
        assert two.box is not None
        assert all(math.isclose(a, b, abs_tol=1) for a, b in zip(one.box, two.box, strict=True))


def test_screenspot_needs_a_convention_and_refuses_one_that_cannot_be_right(tmp_path: Path) -> None:
    file = screenspot_file(tmp_path)
    with pytest.raises(ValueError, match=r"say how they are written, --boxes xyxy \| xywh"):
        loaded(tmp_path, file, images=str(tmp_path / "images"))
    with pytest.raises(ValueError, match=r"--boxes 'xyhw' is unknown"):
        loaded(tmp_path, file, images=str(tmp_path / "images"), boxes="xyhw")
    for wrong in ("xyxy", "xyxy-unit"):
        with pytest.raises(ValueError, match=rf"--boxes {wrong} cannot be right: \d of 3 boxes .* with --boxes xywh 0"):
            loaded(tmp_path, file, images=str(tmp_path / "images"), boxes=wrong)


def test_fractions_are_not_taken_for_pixels(tmp_path: Path) -> None:
    file = screenspot_file(tmp_path)
    rows = json.loads(file.read_text())
    for row in rows:
        row["bbox"] = [0.1, 0.2, 0.5, 0.9]
    file.write_text(json.dumps(rows))
    with pytest.raises(ValueError, match="with --boxes xyxy-unit 0"):
        loaded(tmp_path, file, images=str(tmp_path / "images"), boxes="xyxy")


def test_a_single_box_beside_its_image_is_that_samples_error(tmp_path: Path) -> None:
    file = screenspot_file(tmp_path, 5)
    rows = json.loads(file.read_text())
    rows[2]["bbox"] = [900, 900, 10, 10]
    file.write_text(json.dumps(rows))
    data = loaded(tmp_path, file, images=str(tmp_path / "images"), boxes="xywh")
    assert [bool(s.error) for s in data.samples] == [False, False, True, False, False]
    assert "misses the image of 168x224 pixels" in (data.samples[2].error or "")


def test_a_manifest_tells_kinds_from_its_fields(tmp_path: Path) -> None:
    data = loaded(tmp_path, manifest_file(tmp_path))
    assert [s.kind for s in data.samples[:6]] == ["yes_no", "exact", "anls", "caption", "open", "choice"]
    assert data.samples[0].answer == "yes"
    assert data.samples[2].references == ("a b", "c d")
    assert data.lexicon is not None
    assert set(data.samples[3].objects or ()) <= set(data.lexicon.names)


def test_what_vlmopt_worlds_writes_is_a_manifest(tmp_path: Path) -> None:
    file = write_worlds(tmp_path, 4, 0, 12, (224, 224), "both")
    data = loaded(tmp_path, file, boxes="xyxy")
    kinds = {s.category: s.kind for s in data.samples}
    assert kinds["presence"] == "yes_no"
    assert kinds["click"] == "click"
    assert all((s.box is not None) == (s.kind == "click") for s in data.samples)


ROW = {"id": "1", "image": "a.png", "question": "?", "answer": "cat"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"anwser": "cat"}, r"line 2: unknown field 'anwser' \(did you mean 'answer'\?\)"),
        ({"question": ""}, "line 2: the field 'question' is missing or empty"),
        ({"id": None}, "line 2: the field 'id' is missing"),
        ({"image": None}, "line 2: there is neither image nor video"),
        ({"video": "b.mp4"}, "line 2: give image or video, and not both"),
        ({"kind": "exakt"}, r"line 2: kind 'exakt' is unknown \(did you mean 'exact'\?\)"),
        ({"kind": "yes_no"}, "line 2: answer is 'cat', but the kind yes_no needs yes or no"),
        ({"kind": "exact", "answer": None}, "line 2: the kind exact needs an answer"),
        ({"choices": ["dog", "fish"]}, "line 2: the answer .* is neither one of the choices"),
        ({"kind": "choice"}, "line 2: 0 choices"),
        ({"box": [1, 2, 3]}, "line 2: box is .* needs four numbers"),
        ({"answer": {"a": 1}}, "line 2: answer is .* expected a text or a list of texts"),
        ({"id": "0"}, "1 ids are given more than once"),
        ({"question": 5}, "line 2: question is 5, expected str"),
    ],
)
def test_what_a_manifest_refuses(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    plain_image(tmp_path / "a.png")
    file = lines(tmp_path / "m.jsonl", [ROW | {"id": "0"}, ROW | change])
    with pytest.raises(ValueError, match=words):
        loaded(tmp_path, file)


def test_files_that_are_no_data(tmp_path: Path) -> None:
    broken = tmp_path / "m.jsonl"
    broken.write_text(json.dumps(ROW) + "\n{oops\n")
    with pytest.raises(ValueError, match=r"m.jsonl, line 2, is not valid JSON"):
        loaded(tmp_path, broken)
    broken.write_text('{"id": "0", "id": "1"}\n')
    with pytest.raises(ValueError, match=r"line 1, is not valid JSON: key 'id' is given twice"):
        loaded(tmp_path, broken)
    for deep in ("[" * 10_000 + "]" * 10_000, '{"id":' * 10_000 + "1" + "}" * 10_000):
        broken.write_text(deep)
        with pytest.raises(ValueError, match="nested more than 32 deep"):
            loaded(tmp_path, broken)
    broken.write_text(json.dumps([1, 2]))
    with pytest.raises(ValueError, match="entry 1 is a int, expected an object"):
        loaded(tmp_path, broken)
    broken.write_text(json.dumps({"mood": "good"}))
    with pytest.raises(ValueError, match="has the fields mood, which belong to no known format: pope:"):
        loaded(tmp_path, broken)
    with pytest.raises(ValueError, match="--format 'popes' is unknown"):
        loaded(tmp_path, broken, format="popes")
    with pytest.raises(FileNotFoundError, match="data not found"):
        loaded(tmp_path, tmp_path / "none.json")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"holds no \.json, \.jsonl, \.tsv or \.parquet file"):
        loaded(tmp_path, tmp_path / "empty")


def test_missing_images_are_marked_and_none_at_all_is_refused(tmp_path: Path) -> None:
    plain_image(tmp_path / "a.png")
    rows = [ROW | {"id": str(n), "image": name} for n, name in enumerate(["a.png", "b.png", "a.png"])]
    data = loaded(tmp_path, lines(tmp_path / "m.jsonl", rows))
    assert [bool(s.error) for s in data.samples] == [False, True, False]
    assert "1 of 3 samples miss their image" in data.notes[0]
    with pytest.raises(ValueError, match=r"none of the images is there.*--images"):
        loaded(tmp_path, tmp_path / "m.jsonl", images=str(tmp_path / "elsewhere"))


def test_a_limit_is_a_seeded_choice_in_order(tmp_path: Path) -> None:
    files = pope_files(tmp_path)
    one = loaded(tmp_path, *files, images=str(tmp_path / "images"), limit=12)
    again = loaded(tmp_path, *files, images=str(tmp_path / "images"), limit=12)
    other = loaded(tmp_path, *files, images=str(tmp_path / "images"), limit=12, seed=1)
    assert len(one.samples) == 12
    assert one.digest == again.digest != other.digest
    assert len({s.category for s in one.samples}) == 3
    whole = [s.id for s in loaded(tmp_path, *files, images=str(tmp_path / "images")).samples]
    assert sorted(whole.index(s.id) for s in one.samples) == [whole.index(s.id) for s in one.samples]
    with pytest.raises(ValueError, match="--limit must be 1 or more"):
        loaded(tmp_path, *files, limit=0)


def test_a_limit_spreads_over_images(tmp_path: Path) -> None:
    """Six questions about each of four images: four answers are about four, six about four as well, not about one."""
    rows = [
        {"id": f"{image}-{n}", "image": f"{image}.png", "question": f"{n}?", "answer": "yes"}
        for image in range(4)
        for n in range(6)
    ]
    for image in range(4):
        plain_image(tmp_path / f"{image}.png")
    file = lines(tmp_path / "m.jsonl", rows)
    for limit in (2, 4, 6, 9):
        counts = Counter(s.picture for s in loaded(tmp_path, file, limit=limit, seed=limit).samples)
        assert len(counts) == min(limit, 4)
        assert max(counts.values()) - min(counts.values()) <= 1


def test_worlds_by_name(tmp_path: Path) -> None:
    plain = loaded(tmp_path, "worlds", limit=10)
    assert len(plain.samples) == 10
    assert {"scene", "screen"} == {s.category.split()[0] for s in plain.samples}
    assert len({s.picture for s in plain.samples}) == 10
    assert len({s.category for s in plain.samples}) >= 5
    assert all((tmp_path / "run" / s.images[0]).exists() for s in plain.samples)
    screens = loaded(tmp_path, "worlds:screen", limit=6, model_type="llava")
    assert {s.category.split()[0] for s in screens.samples} == {"screen"}
    polls = loaded(tmp_path, "worlds:pope", limit=36)
    assert {s.category for s in polls.samples} == {"random", "popular", "adversarial"}
    assert sum(s.answer == "yes" for s in polls.samples) == 18
    assert len({s.picture for s in polls.samples}) == 36
    assert {s.extra["groups"][0] for s in polls.samples} == set(DEGRADATIONS)
    assert all((tmp_path / "run" / s.images[0]).exists() for s in polls.samples)
    captions = loaded(tmp_path, "worlds:captions", limit=8)
    assert captions.stops == ","
    assert captions.lexicon is not None
    assert all(set(s.objects or ()) <= set(captions.lexicon.names) for s in captions.samples)
    with pytest.raises(ValueError, match="'worlds:moon' is unknown"):
        loaded(tmp_path, "worlds:moon")


def test_the_digest_changes_with_anything_a_sample_says(tmp_path: Path) -> None:
    data = loaded(tmp_path, manifest_file(tmp_path))
    for change in ({"question": "??"}, {"answer": "no"}, {"images": ("b.png",)}, {"category": "x"}):
        assert replace(data, samples=(replace(data.samples[0], **change), *data.samples[1:])).digest != data.digest


def test_an_image_put_right_leaves_the_digest(tmp_path: Path) -> None:
    file = screenspot_file(tmp_path)
    where = {"images": str(tmp_path / "images"), "boxes": "xywh"}
    whole = loaded(tmp_path, file, **where)
    gone = Path(whole.samples[0].images[0])
    content = gone.read_bytes()
    gone.unlink()
    assert loaded(tmp_path, file, **where).digest == whole.digest
    gone.write_bytes(content)
    rows = json.loads(file.read_text())
    rows[0]["bbox"][0] += 1
    file.write_text(json.dumps(rows))
    assert loaded(tmp_path, file, **where).digest != whole.digest


def test_boxes_that_fit_no_convention_are_refused(tmp_path: Path) -> None:
    file = screenspot_file(tmp_path)
    rows = [row | {"bbox": [100, 100, 300, 400]} for row in json.loads(file.read_text())]
    file.write_text(json.dumps(rows))
    with pytest.raises(ValueError, match="none of the 3 boxes lies in its image"):
        loaded(tmp_path, file, images=str(tmp_path / "images"), boxes="xyxy")


def test_odd_texts_name_their_place(tmp_path: Path) -> None:
    file = tmp_path / "odd_random.jsonl"
    file.write_bytes(b"\xff\xfe{")
    with pytest.raises(ValueError, match=r"odd_random.jsonl is not UTF-8 text"):
        loaded(tmp_path, file)
    file.write_text('{"question_id": 1, "image": "a.png", "text": "\\ud800", "label": "no"}\n{}\n')
    with pytest.raises(ValueError, match="line 1 holds half of a character"):
        loaded(tmp_path, file)
    coco = {"images": [{"id": 1, "file_name": "a.png"}], "annotations": [{"image_id": 1, "caption": None}]}
    file.write_text(json.dumps(coco))
    with pytest.raises(ValueError, match="is not a COCO annotation file"):
        loaded(tmp_path, file)

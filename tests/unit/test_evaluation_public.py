"""Public data sets in the forms that people have, each from a file of its own, and the marks of each."""

from __future__ import annotations

import base64
import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.support.fixtures.evaluation import lines, plain_image
from vlmopt.checkpoints import HERE
from vlmopt.checkpoints.processor import load_processor
from vlmopt.evaluation.data import Data, Sample, Source
from vlmopt.evaluation.loading import load_data
from vlmopt.evaluation.packed import Packed
from vlmopt.evaluation.prompts import BOX_PROMPTS, Asking, Batch
from vlmopt.evaluation.scoring import Marking, Said, grade
from vlmopt.loading import load
from vlmopt.metrics.clicks import boxed, clicked, iou
from vlmopt.metrics.short import canonical, relaxed, vqa
from vlmopt.prompt import interleaved
from vlmopt.synthetic import scene


def loaded(tmp_path: Path, *data: Path | str, **changes: Any) -> Data:
    return load_data(Source(data=[str(d) for d in data], run=tmp_path / "run", **changes))


def packed_image(seed: int, kind: str = "PNG") -> str:
    return base64.b64encode(saved(scene(seed, (112, 112)).image, kind)).decode()


def saved(image: Image.Image, kind: str = "PNG") -> bytes:
    content = io.BytesIO()
    image.save(content, kind)
    return content.getvalue()


def tsv(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)), delimiter="\t")
        writer.writeheader()
        writer.writerows(rows)
    return path


MMBENCH = {
    "question": "What is it?",
    "hint": "Look.",
    "A": "cat",
    "B": "dog",
    "C": "",
    "answer": "B",
    "category": "animal",
}


def test_a_tsv_of_vlmevalkit(tmp_path: Path) -> None:
    """Images in base64, shared by index, several of them; choices, yes and no, open answers."""
    several = str([packed_image(1), packed_image(2, "JPEG")])
    rows = [
        MMBENCH | {"index": "0", "image": packed_image(0), "l2-category": "coarse", "split": "dev"},
        MMBENCH | {"index": "1000000", "image": "0", "A": "dog", "B": "cat", "answer": "A"},
        {"index": "2", "image": several, "question": "Same?\nReally?", "answer": "Yes"},
        {"index": "3", "image": packed_image(3), "question": "How many?", "answer": "12", "A": "nan"},
    ]
    data = loaded(tmp_path, tsv(tmp_path / "MMBench_DEV_EN.tsv", rows))
    first, turned, same, number = data.samples
    assert data.format == "tsv"
    assert (first.id, first.kind, first.answer, first.choices) == ("MMBench_DEV_EN/0", "choice", "dog", ("cat", "dog"))
    assert first.question == "Look.\nWhat is it?"
    assert first.extra["groups"] == ["l2-category coarse", "split dev"]
    assert (turned.images, turned.picture, turned.answer) == (first.images, first.picture, "dog")
    assert (same.kind, same.answer, len(same.images)) == ("yes_no", "yes", 2)
    assert (number.kind, number.answer) == ("exact", "12")
    with Image.open(tmp_path / "run" / first.images[0]) as image:
        assert image.size == (112, 112)
    assert [Path(name).suffix for name in same.images] == [".png", ".jpg"]


def test_images_of_samples_that_are_not_asked_stay_packed(tmp_path: Path) -> None:
    rows = [MMBENCH | {"index": str(n), "image": packed_image(n)} for n in range(6)]
    data = loaded(tmp_path, tsv(tmp_path / "x.tsv", rows), limit=2)
    assert len(data.samples) == len(list((tmp_path / "run" / "pictures").iterdir())) == 2


def test_rows_with_paths(tmp_path: Path) -> None:
    plain_image(tmp_path / "images" / "a.png")
    rows = [{"index": "1", "image_path": "a.png", "question": "What?", "answer": "Rot"}]
    data = loaded(tmp_path, tsv(tmp_path / "x.tsv", rows), images=str(tmp_path / "images"))
    assert data.samples[0].images == (str(tmp_path / "images" / "a.png"),)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"answer": "D"}, "the answer 'D' is none of the letters A, B"),
        ({"image": "7"}, "no row of that index"),
        ({"image": ""}, "neither an image nor an image_path"),
        ({"image": "!" * 100}, "neither an image in base64 nor the index"),
        ({"question": ""}, "the field 'question' is missing or empty"),
    ],
)
def test_what_a_tsv_refuses(tmp_path: Path, change: dict[str, str], words: str) -> None:
    rows = [MMBENCH | {"index": "0", "image": packed_image(0), "image_path": ""} | change]
    with pytest.raises(ValueError, match=f"x.tsv, row 1.*{words}"):
        loaded(tmp_path, tsv(tmp_path / "x.tsv", rows))


def test_rows_of_another_length_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.tsv").write_text("index\tquestion\timage\n1\tWhat?\n")
    with pytest.raises(ValueError, match="row 1, has another number of cells"):
        loaded(tmp_path, tmp_path / "x.tsv")


def test_documents_charts_and_signs(tmp_path: Path) -> None:
    for name in ("documents/a.png", "c.png", "t.jpg"):
        plain_image(tmp_path / name)
    whole = {"dataset_name": "SP-DocVQA", "data": [
        {"questionId": 9, "question": "Date?", "image": "documents/a.png", "answers": ["1/2"],
         "question_types": ["form"]},
        {"questionId": 10, "question": "Whose?", "image": "documents/a.png"},
    ]}  # fmt: skip
    (tmp_path / "val_v1.0.json").write_text(json.dumps(whole))
    first, second = loaded(tmp_path, tmp_path / "val_v1.0.json").samples
    assert (first.id, first.kind, first.references, first.extra) == (
        "val_v1.0/9",
        "anls",
        ("1/2",),
        {"groups": ["form"]},
    )
    assert (second.kind, second.answer, second.picture) == ("open", None, first.picture)
    (tmp_path / "human.json").write_text(json.dumps([{"imgname": "c.png", "query": "Sum?", "label": "14"}]))
    chart = loaded(tmp_path, tmp_path / "human.json")
    assert (chart.samples[0].kind, chart.samples[0].references) == ("relaxed", ("14",))
    assert "single word or phrase" in chart.prompt
    text = {"data": [{"question_id": 1, "question": "Brand?", "image_id": "t", "answers": ["nokia"] * 9 + ["no"]}]}
    (tmp_path / "TextVQA_val.json").write_text(json.dumps(text))
    sign = loaded(tmp_path, tmp_path / "TextVQA_val.json").samples[0]
    assert (sign.kind, len(sign.references), Path(sign.images[0]).name) == ("vqa", 10, "t.jpg")


def test_boxes_of_refcoco(tmp_path: Path) -> None:
    plain_image(tmp_path / "a.png", (200, 100))
    row = {"image": "a.png", "sent": "left man", "bbox": [20, 10, 60, 90], "width": 200, "height": 100}
    file = lines(tmp_path / "refcoco_testA.jsonl", [row])
    data = loaded(tmp_path, file, boxes="xyxy")
    assert (data.format, data.samples[0].kind, data.samples[0].box) == ("refcoco", "box", (20, 10, 60, 90))
    assert data.samples[0].category == "refcoco_testA"
    with pytest.raises(ValueError, match="say how they are written"):
        loaded(tmp_path, file)
    sample = data.samples[0]
    for said, right in (
        ("[20, 10, 60, 90]", True),
        ("(20,10),(60,60)", True),
        ("(20,10),(60,45)", False),
        ("left", False),
    ):
        mark = grade(sample, Said(text=said, size=(200, 100)), Marking(units="pixels"))
        assert mark.correct is right
    assert grade(sample, None, Marking()).correct is False
    assert "[x0, y0, x1, y1] on a scale from 0 to 1000" in BOX_PROMPTS["thousand"]


def test_video_mme(tmp_path: Path) -> None:
    (tmp_path / "fFjv93ACGo8.mp4").write_bytes(b"film")
    row = {
        "videoID": "fFjv93ACGo8", "question_id": "001-1", "question": "When?", "options": ["A. Now.", "B. Later."],
        "answer": "B", "duration": "short", "domain": "Knowledge", "task_type": "Counting",
    }  # fmt: skip
    (sample,) = loaded(tmp_path, lines(tmp_path / "videomme.jsonl", [row])).samples
    assert (sample.kind, sample.choices, sample.answer) == ("choice", ("Now.", "Later."), "Later.")
    assert sample.video == str(tmp_path / "fFjv93ACGo8.mp4")
    assert (sample.category, sample.extra["groups"]) == ("short", ["domain Knowledge", "task_type Counting"])
    with pytest.raises(ValueError, match="entry 1: the answer 'C' is no letter of 2 options"):
        loaded(tmp_path, lines(tmp_path / "videomme.jsonl", [row | {"answer": "C"}]))


def test_repope_is_read_as_pope(tmp_path: Path) -> None:
    plain_image(tmp_path / "a.jpg")
    row = {"question_id": 4, "image": "a.jpg", "text": "Is there a dog in the image?", "label": "no"}
    (sample,) = loaded(tmp_path, lines(tmp_path / "coco_repope_adversarial.json", [row])).samples
    assert (sample.id, sample.category, sample.answer) == ("adversarial/4", "adversarial", "no")


def test_parquet_and_saved_data_sets(tmp_path: Path) -> None:
    """Images inside, once each; columns that a manifest does not have are the data set's own."""
    datasets = pytest.importorskip("datasets")
    image = scene(0, (112, 112)).image
    columns = {
        "question_id": ["q1", "q2"], "image": [image, image], "question": ["Red?", "What?"],
        "answer": ["yes", "a star"], "image_source": ["x", "y"],
    }  # fmt: skip
    table = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    table.to_parquet(tmp_path / "test.parquet")
    table.save_to_disk(str(tmp_path / "saved"))
    datasets.DatasetDict({"dev": table}).save_to_disk(str(tmp_path / "splits"))
    for name in ("test.parquet", "saved"):
        data = loaded(tmp_path, tmp_path / name)
        assert [(s.id, s.kind, s.answer) for s in data.samples] == [("q1", "yes_no", "yes"), ("q2", "exact", "a star")]
        assert data.samples[0].images == data.samples[1].images
        assert data.samples[0].picture == data.samples[1].picture
        assert (tmp_path / "run" / data.samples[0].images[0]).exists()
    with pytest.raises(ValueError, match=r"holds the splits dev: name one of them, such as .*splits/dev"):
        loaded(tmp_path, tmp_path / "splits")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 not")
    with pytest.raises(ValueError, match=r"broken\.parquet cannot be read by datasets"):
        loaded(tmp_path, tmp_path / "broken.parquet")


def test_parquet_with_the_columns_of_other_formats(tmp_path: Path) -> None:
    """What a data set asks decides how it is marked, in parquet as in JSON."""
    datasets = pytest.importorskip("datasets")
    image = {"image": [scene(0, (112, 112)).image]}
    for name, kind, columns in (
        ("docvqa", "anls", {"questionId": ["7"], "question": ["Date?"], "answers": [["1/2"]], "docId": [3]}),
        ("textvqa", "vqa", {"image_id": ["a"], "question_id": [7], "question": ["Brand?"], "answers": [["nokia"] * 9]}),
        ("mmbench", "choice", {"index": [0], "question": ["What?"], "A": ["a"], "B": ["b"], "answer": ["A"]}),
        ("chartqa", "relaxed", {"query": ["Sum?"], "label": [["14"]], "human_or_machine": [0]}),
    ):
        table = datasets.Dataset.from_dict(columns | image).cast_column("image", datasets.Image())
        table.to_parquet(tmp_path / f"{name}.parquet")
        (sample,) = loaded(tmp_path, tmp_path / f"{name}.parquet").samples
        assert sample.kind == kind
        assert (tmp_path / "run" / sample.images[0]).exists()


def test_what_holds_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.tsv").write_text("index\tquestion\timage\n")
    (tmp_path / "x.json").write_text("[]")
    for name in ("x.tsv", "x.json"):
        with pytest.raises(ValueError, match=f"{name} holds no samples"):
            loaded(tmp_path, tmp_path / name)
    lines(tmp_path / "x.jsonl", [{"question": "What?", "answer": "a", "category": "b"}])
    with pytest.raises(ValueError, match="neither image nor video; the fields are id, question, answer, category"):
        loaded(tmp_path, tmp_path / "x.jsonl")


def test_parquet_without_datasets_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match="needs the package datasets: pip install datasets"):
        loaded(tmp_path, tmp_path / "x.parquet")


@pytest.mark.parametrize(
    ("answer", "reference", "right"),
    [
        ("14", "14", True), ("14.6", "14", True), ("14.8", "14", False), ("12%", "0.12", True), ("12 %", "12", False),
        ("0", "0", True), ("0.001", "0", False), ("Japan", "japan", True), ("Japan and China", "Japan", False),
    ],
)  # fmt: skip
def test_relaxed_accuracy(answer: str, reference: str, right: bool) -> None:
    assert relaxed(answer, [reference]) is right


def test_vqa_accuracy_leaves_one_person_out() -> None:
    assert vqa("Nokia.", ["nokia"] * 10) == 1
    assert vqa("nokia", ["nokia"] * 2 + ["samsung"] * 8) == pytest.approx((2 * 1 / 3 + 8 * 2 / 3) / 10)
    assert vqa("nokia", ["nokia"] * 3 + ["samsung"] * 7) == pytest.approx((3 * 2 / 3 + 7) / 10)
    assert vqa("htc", ["nokia"] * 10) == 0
    assert vqa("two", ["2"]) == 1
    assert canonical("The Two, 1,000.5 cats!") == "2 1000.5 cats"
    for rule in (vqa, relaxed):
        with pytest.raises(ValueError, match=r"accepted answer|answers of the people"):
            rule("x", [])


def test_marks_of_short_answers_read_what_is_stated() -> None:
    chart = Sample(id="1", question="?", kind="relaxed", answer=("14",))
    assert grade(chart, Said(text="<think>13?</think>The answer is **14.2**"), Marking()).correct is True
    assert grade(chart, Said(text="The answer is **14.2**"), Marking(parser="reference")).correct is False
    sign = Sample(id="1", question="?", kind="vqa", answer=("nokia",) * 10)
    assert grade(sign, Said(text="The answer is Nokia."), Marking()).correct == 1
    assert grade(sign, None, Marking()).correct == 0


def test_models_that_say_y_first() -> None:
    size = (2000, 1000)
    assert clicked("[250, 100]", "thousand-yx", size) == (200, 250)
    assert clicked("x=100, y=250", "thousand-yx", size) == (200, 250)
    assert clicked("[[200, 50, 300, 150]]", "thousand-yx", size) == (200, 250)
    assert boxed('{"box_2d": [200, 50, 300, 150]}', "thousand-yx", size) == (100, 200, 300, 300)
    assert boxed("x1=300, y1=200, x2=100, y2=300", "pixels", size) == (100, 200, 300, 300)
    assert boxed("(5, 5)", "pixels", size) is None
    assert iou((0, 0, 2, 2), (1, 1, 3, 3)) == pytest.approx(1 / 7)
    assert iou((0, 0, 1, 1), (5, 5, 6, 6)) == iou((0, 0, 0, 0), (0, 0, 0, 0)) == 0


def test_names_of_packed_images_depend_on_their_content() -> None:
    assert Packed.base64(packed_image(0), "") == Packed.base64("data:image/png;base64," + packed_image(0), "")
    assert Packed.base64(packed_image(0), "") != Packed.base64(packed_image(1), "")


IMAGES_FIRST = (  # as LLaVA's own template does
    "{% for message in messages %}USER: {% for part in message['content'] if part['type'] == 'image' %}<image>\n"
    "{% endfor %}{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


@pytest.mark.parametrize(
    ("question", "expected", "order"),
    [
        ("What?", "##What?", [0, 1]),
        ("In <image 2> or in <image 1>?", "In # or in #?", [1, 0]),
        ("In <image 2>?", "#In #?", [0, 1]),
        ("<image 1> or <image 2> like <image 1>?", "# or # like #?", [0, 1, 0]),
        ("<image 0>, <image 3>", "##<image 0>, <image 3>", [0, 1]),
    ],
)
def test_images_stand_where_a_question_names_them(question: str, expected: str, order: list[int]) -> None:
    processor = load_processor(str(HERE / "tiny-llava"))
    text, shown = interleaved(processor, 2, question)
    image = "<|vision_start|><|image_pad|><|vision_end|>"
    assert (text.replace(image, "#"), shown) == (f"<|user|>{expected}<|assistant|>", order)


def test_names_of_images_stay_where_a_template_puts_all_images_first() -> None:
    processor = load_processor(str(HERE / "tiny-llava"))
    processor.chat_template = IMAGES_FIRST
    question = "In <image 2> or in <image 1>?"
    assert interleaved(processor, 2, question) == (f"USER: <image>\n<image>\n{question}ASSISTANT:", [0, 1])


def test_pixels_follow_the_places_of_their_images(tmp_path: Path) -> None:
    """Of MMMU's rows with several images; what is known of the first stays that of the first."""
    sizes = [(112, 112), (224, 112)]
    packed = str([base64.b64encode(saved(scene(1, size).image)).decode() for size in sizes])
    row = {"index": "1", "image": packed, "question": "Is <image 2> like <image 1>?", "answer": "A"}
    rows = [row | {"A": "<image 1>", "B": "both"}, row | {"index": "2", "question": "Same?", "A": "no", "B": "yes"}]
    data = loaded(tmp_path, tsv(tmp_path / "MMMU_DEV_VAL.tsv", rows))
    asking = Asking(loaded=load("tiny-qwen"), run=tmp_path / "run")
    (batch,) = asking.prepare(data.samples)
    assert isinstance(batch, Batch)
    assert batch.inputs["image_grid_thw"][:, 2].tolist() == [16, 8, 8, 8, 16]
    assert (batch.sizes, batch.resized) == (((112, 112),) * 2, ((112, 112),) * 2)

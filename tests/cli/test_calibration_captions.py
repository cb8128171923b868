"""Images to be described whose objects are known, and the places where captions name them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from PIL import Image

from tests.support.broken import broken_tiff
from vlmopt.calibration.captions import annotated, first_token, habits, mentions
from vlmopt.cli.calibrate import FIRST_SEED
from vlmopt.metrics import chair, coco_lexicon


class Pieces:
    """A tokenizer of characters in UTF-8 bytes, a space before a word being a token of its own."""

    def decode(self, ids: Any, **_: Any) -> str:
        return bytes(ids).decode("utf-8", errors="replace")


@pytest.mark.parametrize(
    "caption",
    [
        "Two men on a motor bike beside a red car, and a hot dog.",
        "A toilet seat; a toilet and a seat.",  # a seat is no chair where a toilet is named
        "A baby elephant, adult bears and a bow tie: home plate, train tracks!",
        "İn a café, a dog's ball_ball dogs dog",  # lower case is longer than the text
        "",
    ],
)
def test_mentions_are_those_of_chair(caption):
    lexicon, text = coco_lexicon(), caption.lower()
    found = mentions(caption, lexicon)
    assert [name for _, name in found] == lexicon.mentions(caption)
    assert [place for place, _ in found] == sorted({place for place, _ in found})
    assert all(not text[place - 1 : place].isalnum() for place, _ in found if place)
    if caption.startswith("Two"):
        assert [text[place:].split()[0] for place, _ in found] == ["men", "motor", "car,", "hot"]
        assert chair([caption], [["person"]], lexicon).false.tolist() == [3]


def test_the_first_token_of_a_word():
    caption = "é a dog, İdog"
    pieces, text = list(caption.encode()), caption.lower()
    decode = Pieces().decode
    assert pieces[first_token(pieces, caption, text.index("dog"), decode)] == ord("d")
    assert first_token(pieces, caption, text.index("dog"), decode) == caption.encode().index(b"dog")
    assert first_token(pieces, caption, 0, decode) == 1  # its second byte


def test_annotations_of_coco(tmp_path):
    for number in range(3):
        Image.new("RGB", (60, 40), (90, 50 * number, 0)).save(tmp_path / f"{number}.png")
    coco = {
        "images": [{"id": n, "file_name": f"{n}.png"} for n in range(3)],
        "categories": [{"id": 1, "name": "dog"}],
        "annotations": [{"image_id": 1, "category_id": 1}],
    }
    (tmp_path / "instances.json").write_text(json.dumps(coco))
    shown = annotated([str(tmp_path / "instances.json")], None, None, 2)
    assert shown.count == 2
    images = [shown.show(number) for number in range(3)]
    assert sorted(objects for _, _, objects in images) == [(), (), ("dog",)]
    assert [objects for image, _, objects in images if image.getpixel((0, 0))[1] == 50] == [("dog",)]
    assert images[0][1] == "Please describe this image in detail."
    assert shown.lexicon.source == coco_lexicon().source
    with pytest.raises(ValueError, match="without --data"):
        annotated(["worlds:captions"], None, None, 2)


def test_images_that_cannot_be_read_are_left_out_and_counted(tmp_path):
    broken_tiff(tmp_path / "0.tiff")
    for number in (1, 2):
        Image.new("RGB", (60, 40), (90, 50 * number, 0)).save(tmp_path / f"{number}.png")
    names = ["0.tiff", "1.png", "2.png"]
    rows = [{"id": n, "image": n, "question": "Describe it.", "kind": "caption", "objects": ["dog"]} for n in names]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    shown = annotated([str(tmp_path / "m.jsonl")], None, None, 5)
    assert shown.count == 2
    assert len([shown.show(number) for number in range(2)]) == 2
    assert shown.data.endswith("(1 more could not be read)")


def test_generated_images():
    shown = habits("llava", 8, FIRST_SEED)
    image, question, objects = shown.show(3)
    assert question == "Describe the picture."
    assert set(objects) <= set(shown.lexicon.names)
    assert len(objects) >= 4
    assert shown.show(3)[0].tobytes() == image.tobytes()
    assert len({image.size for image, _, _ in map(shown.show, range(8))}) == 2  # that suit the model

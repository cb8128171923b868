"""The bundled checkpoints: load offline through every door and answer questions about images they never saw."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

import vlmopt
from vlmopt.checkpoints import HERE, bundled, load_checkpoint
from vlmopt.synthetic.asked import SIZES, SIZES_OF, one_of_each_kind
from vlmopt.training.evaluate import answer_all, correct, wilson

CLASSES = {"tiny-qwen": "Qwen2_5_VLForConditionalGeneration", "tiny-llava": "LlavaForConditionalGeneration"}
BYTES = {"tiny-qwen": 16_000_000, "tiny-llava": 12_000_000}
SAMPLES = Path(vlmopt.__file__).parent / "synthetic" / "samples"
FRESH = 700_000_000  # seed of the first image here; neither training nor the model cards' figures used it
SAMPLE_ANSWERS = [
    ("screen.png", "Is there a Save button?", "yes"),
    ("screen.png", "Is there a Save link?", "no"),
    ("screen.png", "What is Copy?", "checkbox"),
    ("screen.png", "What is the title?", "Music"),
    ("scene.png", "Is there a red circle?", "yes"),
    ("scene.png", "Is there a green star?", "no"),
    ("scene.png", "Is there a cyan star?", "yes"),
    ("scene.png", "What colour is the triangle?", "red"),
    ("scene.png", "Where is the orange star?", "top left"),
]
FLOORS = {"scene presence": 0.85, "scene colour": 0.85, "screen click": 0.85, "screen presence": 0.85}


@pytest.fixture(scope="module", params=CLASSES)
def name(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def loaded(name):
    return load_checkpoint(name)


def fresh(model, count: int):
    return one_of_each_kind(count, FRESH, SIZES_OF.get(model.config.model_type, SIZES))


def prompt(processor, text: str) -> str:
    content = [{"type": "image"}, {"type": "text", "text": text}]
    return processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)


def ask(model, processor, file: str, question: str) -> str:
    image = Image.open(SAMPLES / file).convert("RGB")
    inputs = processor(text=[prompt(processor, question)], images=[image], return_tensors="pt")
    out = model.generate(**inputs, max_new_tokens=24)
    return processor.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


def test_is_bundled_and_small(name):
    assert name in bundled()
    assert sum(path.stat().st_size for path in (HERE / name).glob("*.safetensors")) <= BYTES[name]
    assert not list((HERE / name).glob("*.bin"))


def test_is_a_stock_model_in_full_precision(name, loaded):
    model, _ = loaded
    assert type(model).__name__ == CLASSES[name]
    assert type(model).__module__.startswith("transformers.")
    assert not model.training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert sum(parameter.numel() for parameter in model.parameters()) <= 8_000_000


def test_processor_makes_256_visual_tokens(name, loaded):
    model, processor = loaded
    image = Image.open(SAMPLES / "scene.png").convert("RGB")
    inputs = processor(text=[prompt(processor, "Is there a red circle?")], images=[image], return_tensors="pt")
    assert int((inputs["input_ids"] == model.config.image_token_id).sum()) == 256
    if name == "tiny-qwen":
        assert inputs["image_grid_thw"].tolist() == [[1, 16, 16]]
        assert inputs["mm_token_type_ids"].sum() == 256
    else:
        assert inputs["pixel_values"].shape == (1, 3, 224, 224)


@pytest.mark.parametrize(("file", "question", "expected"), SAMPLE_ANSWERS)
def test_answers_about_the_sample_images(loaded, file, question, expected):
    assert ask(*loaded, file, question) == expected


def test_clicks_the_button_of_the_sample_screen(loaded):
    x, y = map(int, ask(*loaded, "screen.png", "Click Save.").strip("()").split(","))
    assert 28 <= x < 98
    assert 70 <= y < 98


def test_accuracy_on_fresh_images_stays_above_the_floor(loaded):
    asked = [pair for pair in fresh(loaded[0], 40) if f"{pair[0].family} {pair[1].kind}" in FLOORS]
    asked.sort(key=lambda pair: pair[0].size)
    marks: dict[str, list[bool]] = {}
    for (world, question), answer in zip(asked, answer_all(*loaded, asked), strict=True):
        marks.setdefault(f"{world.family} {question.kind}", []).append(correct(question, answer))
    for name, floor in FLOORS.items():
        assert sum(marks[name]) / len(marks[name]) >= floor, (name, marks[name])


def test_auto_classes_give_the_same_answers(name, loaded):
    model, processor = loaded
    again, stock = AutoModelForImageTextToText.from_pretrained(HERE / name), AutoProcessor.from_pretrained(HERE / name)
    assert hasattr(stock, "image_processor")
    asked = [pair for pair in fresh(model, 2) if pair[0].size[0] == 224][:6]
    assert answer_all(again.eval(), stock, asked) == answer_all(model, processor, asked)


@pytest.mark.parametrize("name", CLASSES)
def test_loads_without_torchvision_and_network(name):
    """In a fresh process where importing torchvision fails, as it does where it is not installed."""
    code = (
        "import sys, socket; sys.modules['torchvision'] = None\n"
        "def refuse(*args, **kwargs): raise OSError('no network here')\n"
        "socket.socket.connect = refuse\n"
        "from transformers import AutoProcessor\n"
        "from vlmopt.checkpoints import load_checkpoint\n"
        f"model, processor = load_checkpoint({name!r})\n"
        f"assert type(AutoProcessor.from_pretrained({str(HERE / name)!r})) is type(processor)\n"
        "assert hasattr(processor, 'image_processor')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_a_bare_tokenizer_is_refused(tmp_path):
    _, processor = load_checkpoint("tiny-qwen")
    processor.tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    from vlmopt.checkpoints.processor import load_processor

    with pytest.raises(ValueError, match="no image processor"):
        load_processor(str(tmp_path))


def test_wilson_interval():
    low, high = wilson(90, 100)
    assert low == pytest.approx(0.826, abs=1e-3)
    assert high == pytest.approx(0.945, abs=1e-3)

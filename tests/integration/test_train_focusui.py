"""Training of FocusUI: any family through its own processor, resumable, the same however many processes share it."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers as hf
from accelerate import Accelerator
from PIL import Image, ImageDraw
from safetensors.torch import load_file

import vlmopt
from tests.support.stock import save_checkpoint
from vlmopt.checkpoints import HERE
from vlmopt.checkpoints.processor import build_processor
from vlmopt.cli.main import main
from vlmopt.focusui import run as module
from vlmopt.focusui.examples import Example, Mixed, Screens, examples
from vlmopt.focusui.loop import Loop
from vlmopt.focusui.prompts import IGNORE, prompts
from vlmopt.focusui.run import Training
from vlmopt.focusui.settings import Settings
from vlmopt.focusui.watch import look, watched
from vlmopt.prompt import placed
from vlmopt.pruning import FocusUI
from vlmopt.synthetic.web.render import find_browser

FAMILIES = ("qwen2_5_vl", "qwen3_vl", "llava")
TEXT = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 2048}  # fmt: skip


def qwen3_vl(directory: Path) -> None:
    _, processor = vlmopt.load_checkpoint("tiny-qwen")
    tokenizer = processor.tokenizer
    ids = {f"{name}_token_id": tokenizer.convert_tokens_to_ids(f"<|{token}|>")
           for name, token in (("image", "image_pad"), ("video", "video_pad"), ("vision_start", "vision_start"),
                               ("vision_end", "vision_end"))}  # fmt: skip
    rope = {"rope_type": "default", "mrope_section": [2, 1, 1], "mrope_interleaved": True, "rope_theta": 1e4}
    tower = {"depth": 2, "hidden_size": 32, "num_heads": 2, "intermediate_size": 48, "out_hidden_size": 32,
             "patch_size": 14, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]}  # fmt: skip
    text = {**TEXT, "vocab_size": len(tokenizer), "rope_parameters": rope, "rope_scaling": rope}
    hf.Qwen3VLForConditionalGeneration(hf.Qwen3VLConfig(text_config=text, vision_config=tower, **ids)).save_pretrained(
        directory
    )
    build_processor(tokenizer, processor.chat_template, 14, 2).save_pretrained(directory)


def llava(directory: Path) -> None:
    config = hf.AutoConfig.from_pretrained(HERE / "tiny-llava")
    config.text_config.update({**TEXT, "num_key_value_heads": 4})
    config.vision_config.update({"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
                                 "num_attention_heads": 2})  # fmt: skip
    hf.LlavaForConditionalGeneration(config).save_pretrained(directory)
    vlmopt.load_checkpoint("tiny-llava")[1].save_pretrained(directory)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Directories of random models with their processors."""
    found = {}
    for name, make in (("qwen2_5_vl", save_checkpoint), ("qwen3_vl", qwen3_vl), ("llava", llava)):
        torch.manual_seed(0)
        found[name] = str(tmp_path_factory.mktemp(name))
        make(Path(found[name]))
    return found


def settings(model: str, out: Path, **more: Any) -> Settings:
    given = {"steps_scorer": 3, "steps_model": 3, "batch_size": 2, "data": ("worlds:screen",), "save_every": 0.0}
    return Settings(model=model, out=out, **{**given, **more})


def training(model: str, out: Path, **more: Any) -> Training:
    return Training(settings(model, out, **more), Accelerator(cpu=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_both_stages_train_what_they_should_and_the_result_is_used_by_name(family, tiny, tmp_path):
    words = ["train-focusui", "--model", tiny[family], "--out", str(tmp_path), "--batch-size", "2"]
    assert main([*words, "--steps-scorer", "3", "--steps-model", "3", "--device", "cpu"]) == 0
    folders = Path(tiny[family]), tmp_path / "checkpoint"
    before, after = (load_file(folder / "model.safetensors") for folder in folders)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert any("layers" in name for name in changed)
    assert not [name for name in changed if "visual" in name or "vision" in name or "embed_tokens" in name]
    model, processor = vlmopt.load_checkpoint(tmp_path / "checkpoint")
    method = FocusUI(scorer=str(tmp_path / "scorer"), keep_ratio=0.3)
    inputs = processor(text=[processor_text(processor)], images=[Image.new("RGB", (224, 224))], return_tensors="pt")
    with vlmopt.optimized(model, method), torch.no_grad():
        model(**inputs)
        sample = vlmopt.report(model).samples[0]
    assert sample["visual_tokens_kept"] == round(0.3 * sample["visual_tokens"])
    assert json.loads((tmp_path / "scorer" / "focus_ui.json").read_text())["trained_with"]["steps"] == {
        "scorer": 3, "model": 3,
    }  # fmt: skip


def processor_text(processor: Any) -> str:
    from vlmopt.prompt import chat

    return chat(processor, "image", 1, "Click Save.")


@pytest.mark.parametrize("at", [2, 5])
def test_a_run_that_was_killed_ends_like_one_that_was_not(at, tiny, tmp_path, monkeypatch):
    training(tiny["qwen3_vl"], tmp_path / "whole").run()
    broken = training(tiny["qwen3_vl"], tmp_path / "broken")
    steps = []

    def die(loss: Any) -> Any:
        steps.append(loss)
        if len(steps) > at:
            raise KeyboardInterrupt
        return loss.backward()

    monkeypatch.setattr(broken.accelerator, "backward", die)
    with pytest.raises(KeyboardInterrupt):
        broken.run()
    monkeypatch.undo()
    for name in ("scorer", "model"):
        (tmp_path / "broken" / f"{name}.part").write_bytes(b"half a state")  # as a kill leaves it
    torch.manual_seed(1234)
    training(tiny["qwen3_vl"], tmp_path / "broken").run()
    for file in ("scorer/focus_ui.safetensors", "checkpoint/model.safetensors"):
        whole, broken = (load_file(tmp_path / name / file) for name in ("whole", "broken"))
        assert whole.keys() == broken.keys()
        for name, weight in whole.items():  # two forwards of one batch may differ in the last bits
            torch.testing.assert_close(broken[name], weight, atol=1e-6, rtol=1e-4)
    with pytest.raises(ValueError, match=r"another run.*batch_size.*--out"):
        training(tiny["qwen3_vl"], tmp_path / "whole", batch_size=4).run()


def test_the_loss_of_the_scorer_falls_on_screens_it_has_not_seen(tmp_path):
    one = training("tiny-qwen", tmp_path, steps_scorer=30, steps_model=0, batch_size=2, save_every=1e9)

    def unseen() -> float:
        one.scorer.eval()
        one.scorer.train = lambda mode=True: one.scorer  # stays in eval mode
        with watched(one.model, one.scorer, None) as watch, torch.no_grad():
            found = [float(one.scorer_work(watch, step)[0]) for step in range(1000, 1004)]
        del one.scorer.train
        return sum(found) / len(found)

    before = unseen()
    one.run()
    after = unseen()
    assert after < 0.7 * before
    assert not (tmp_path / "checkpoint").exists()
    assert "marker" not in load_file(tmp_path / "scorer" / "focus_ui.safetensors")
    vlmopt.optimize(one.model, FocusUI(scorer=str(tmp_path / "scorer"), keep_ratio=0.3, marker="mean"))
    vlmopt.restore(one.model)


def test_figures_of_the_log_are_means_also_where_a_run_goes_on(tmp_path):
    def loop() -> Loop:
        groups = [(1e-3, {"w": weight})]
        return Loop(Accelerator(cpu=True), tmp_path / "one.pt", groups, 30, {}, save_every=0.0)

    def work(step: int) -> Any:
        if broken and step == 20:
            raise KeyboardInterrupt
        return weight.sum() * 0 + 2, {"recall": 0.5}

    weight, broken = torch.nn.Parameter(torch.ones(3)), True
    with pytest.raises(KeyboardInterrupt):
        loop().run(work)
    broken = False
    loop().run(work)
    lines = (tmp_path / "one.log").read_text().splitlines()
    assert [line.split()[2:] for line in lines] == [["loss", "2.0000", "recall", "0.5000"]] * 2


def test_a_finished_run_that_is_started_again_keeps_its_marker(tiny, tmp_path, monkeypatch):
    training(tiny["llava"], tmp_path, steps_scorer=1, steps_model=1).run()
    before = (tmp_path / "scorer" / "focus_ui.safetensors").read_bytes()
    again = training(tiny["llava"], tmp_path, steps_scorer=1, steps_model=1)

    def die() -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(again, "first_marker", die)
    with pytest.raises(KeyboardInterrupt):
        again.run()
    assert (tmp_path / "scorer" / "focus_ui.safetensors").read_bytes() == before


class Half:
    """Process `index` of two that take turns: what they would sum is known beforehand."""

    num_processes, device, is_main_process = 2, torch.device("cpu"), True

    def __init__(self, index: int, total: int) -> None:
        self.process_index, self.total = index, total
        self.autocast = Accelerator(cpu=True).autocast

    def reduce(self, value: torch.Tensor, reduction: str) -> torch.Tensor:
        assert reduction == "sum"
        return torch.tensor(self.total)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava"])
def test_two_processes_have_the_gradients_of_one(family, tiny, tmp_path):
    one = training(tiny[family], tmp_path, batch_size=4)
    torch.manual_seed(3)
    marker = torch.nn.Parameter(torch.randn(32))
    parameters = one.model_loop(marker).parameters
    drawn = [one.examples.draw(module.MODEL_START + number, clicks=False) for number in range(4)]
    assert len({len(example.answer) for example in drawn}) > 1
    total = prompts(one.processor, drawn, answered=True).asked

    def gradients() -> dict[str, torch.Tensor]:
        for p in parameters.values():
            p.grad = None
        with watched(one.model, one.scorer, marker) as watch:
            loss, _ = one.model_work(watch, 0)
        loss.backward()
        return {name: p.grad.clone() for name, p in parameters.items() if p.grad is not None}

    whole = gradients()
    assert float(whole["marker"].abs().max()) > 0
    assert "scorer.visual.up.weight" in whole
    halves = []
    for index in (0, 1):
        one.accelerator, one.share = Half(index, total), 2
        halves.append(gradients())
    for name, gradient in whole.items():
        mean = sum(half.get(name, torch.zeros_like(gradient)) for half in halves) / 2
        assert torch.allclose(mean, gradient, atol=1e-5, rtol=1e-3), name


@pytest.mark.slow
def test_accelerate_launches_two_processes(tiny, tmp_path):
    words = ["train-focusui", "--model", tiny["qwen3_vl"], "--steps-scorer", "1", "--steps-model", "1"]
    one = [sys.executable, "-m", "vlmopt"]
    port = "29713"
    two = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1",
           "--main_process_port", port, "--mixed_precision", "no", "-m", "vlmopt"]  # fmt: skip
    for name, command in (("one", one), ("two", two)):
        subprocess.run(
            [*command, *words, "--device", "cpu", "--batch-size", "4", "--out", str(tmp_path / name)],
            check=True,
            timeout=300,
        )
    for stage in ("scorer", "model"):
        a, b = (torch.load(tmp_path / name / f"{stage}.pt", weights_only=True)["optimizer"] for name in ("one", "two"))
        for key, state in a["state"].items():  # after one step the mean gradient, but for a factor
            assert torch.allclose(state["exp_avg"], b["state"][key]["exp_avg"], atol=1e-6, rtol=1e-3)


def test_training_reads_and_drops_what_the_method_will(tiny, tmp_path, monkeypatch):
    """The same text without the answer, the same cells, the same markers: the same answers' logits."""
    one = training(tiny["qwen3_vl"], tmp_path, batch_size=2)
    one.run()
    monkeypatch.setattr(module, "RETENTION", (0.3, 0.3))
    marker = load_file(tmp_path / "scorer" / "focus_ui.safetensors")["marker"]
    one.scorer.eval()
    monkeypatch.setattr(one.scorer, "train", lambda: None)
    drawn = [one.examples.draw(module.MODEL_START + number, clicks=False) for number in range(2)]
    bare, full = (prompts(one.processor, drawn, answered=answered) for answered in (False, True))
    with watched(one.model, one.scorer, None) as watch:
        asked = look(one.model, watch, bare.inputs, bare.boxes)
    with watched(one.model, one.scorer, marker) as watch:
        _, figures = one.model_work(watch, 0)
        for a, b in zip(asked, watch.now[-1].seen, strict=True):
            assert torch.equal(a.text, b.text)
            assert torch.equal(a.visual, b.visual)
    lost = 0.0
    for number, example in enumerate(drawn):
        ids = full.inputs["input_ids"][number, -full.answers[number] :]
        single = prompts(one.processor, [example], answered=False)
        start = single.inputs["input_ids"].shape[1]
        with vlmopt.optimized(one.model, FocusUI(scorer=str(tmp_path / "scorer"), keep_ratio=0.3)) as model:
            said = model.generate(
                **placed(single.inputs, model.device, model.dtype), max_new_tokens=len(ids), do_sample=False,
                prefix_allowed_tokens_fn=lambda _, so_far, ids=ids, start=start: [int(ids[len(so_far) - start])],
                output_logits=True, return_dict_in_generate=True,
            )  # fmt: skip
        lost += float(torch.nn.functional.cross_entropy(torch.cat(said.logits), ids, reduction="sum"))
    assert abs(lost / full.asked - figures["answers"]) < 1e-4


def test_answers_are_labelled_and_nothing_else(tiny):
    for family in FAMILIES:
        processor = vlmopt.load_checkpoint(tiny[family])[1]
        image, box = Image.new("RGB", (224, 224)), (0.0, 0.0, 1.0, 1.0)
        drawn = [Example(image, "Click Save.", answer, (box,)) for answer in ("(7, 14)", "yes")]
        asked = prompts(processor, drawn, answered=True)
        for row, example in enumerate(drawn):
            ids = asked.labels[row][asked.labels[row] != IGNORE]
            assert processor.tokenizer.decode(ids, skip_special_tokens=True).strip() == example.answer
            assert processor.tokenizer.decode(ids).strip().endswith("<|im_end|>")


def test_labels_lie_where_the_box_is_also_in_padded_images(tiny, tmp_path):
    one = training(tiny["llava"], tmp_path)
    image = Image.new("RGB", (224, 112), (240, 240, 240))
    ImageDraw.Draw(image).rectangle((140, 28, 195, 55), fill=(20, 60, 200))
    example = Example(image, "Click it.", "", ((140 / 224, 0.25, 196 / 224, 0.5),))
    asked = prompts(one.processor, [example], answered=False)
    with watched(one.model, one.scorer, None) as watch:
        (seen,) = look(one.model, watch, asked.inputs, asked.boxes)
    y, x = (seen.label.view(16, 16) > 0.5).nonzero().T
    assert (y.min(), y.max(), x.min(), x.max()) == (6, 7, 10, 13)  # 56 px of padding above


def test_data_sets_of_clicks(tmp_path):
    Image.new("RGB", (200, 100)).save(tmp_path / "a.png")
    entry = {"img_filename": "a.png", "instruction": "save the file", "bbox": [20, 10, 40, 20], "data_type": "text"}
    file = tmp_path / "clicks.json"

    def source(units: str, **more: Any) -> Any:
        file.write_text(json.dumps([{**entry, **more}] * 3))
        return examples(str(file), 0, "", lambda image: (400, 200), tmp_path, boxes="xywh", units=units)

    answers = {"pixels": "(40, 20)", "resized": "(80, 40)", "unit": "(0.200, 0.200)", "thousand": "(200, 200)"}
    for units, answer in answers.items():
        example = source(units).draw(5, clicks=True)
        assert example.answer == answer
        assert example.boxes == ((0.1, 0.1, 0.3, 0.3),)
        assert "save the file" in example.question
    with pytest.raises(ValueError, match="held out"):
        source("pixels", split="held-out")
    with pytest.raises(ValueError, match="--data 'nothing'"):
        examples("nothing", 0, "", lambda image: (1, 1), tmp_path)


@pytest.mark.skipif(find_browser() is None, reason="no Chromium renders pages here")
def test_windows_of_pages_follow_from_their_number(tmp_path):
    pytest.importorskip("playwright")
    found = []
    for numbers in ((7, 8), (8,)):
        source = examples("web", 3, "", lambda image: (1, 1), tmp_path)
        found += [source.draw(number, clicks=True) for number in numbers]
        source.close()
    assert found[1].image.tobytes() == found[2].image.tobytes() != found[0].image.tobytes()
    assert (found[1].question, found[1].answer, found[1].boxes) == (found[2].question, found[2].answer, found[2].boxes)
    for example in found:
        assert example.question.startswith("Click")
        (x0, y0, x1, y1) = example.boxes[0]
        x, y = (int(n) for n in example.answer.strip("()").split(", "))
        width, height = example.image.size
        assert x0 * width - 7 <= x <= x1 * width + 7
        assert y0 * height - 7 <= y <= y1 * height + 7


def test_what_cannot_work_is_refused(tiny, tmp_path):
    with pytest.raises(ValueError, match="multiple of the 2 processes"):
        Training(settings(tiny["llava"], tmp_path, batch_size=3), SimpleNamespace(num_processes=2))
    for name in ("scorer", "model"):
        with pytest.raises(ValueError, match=f"--lr-{name} must be above 0"):
            replace(settings(tiny["llava"], tmp_path), **{f"rate_{name}": -1.0})
    with pytest.raises(ValueError, match="--steps-model -1"):
        replace(settings(tiny["llava"], tmp_path), steps_model=-1)


def test_several_sources_take_turns():
    parts = [Screens(0, "qwen2_5_vl"), Screens(1, "qwen2_5_vl", scenes=True)]
    mixed = Mixed(parts)
    for number in range(6):
        assert mixed.draw(number, False).question == parts[number % 2].draw(number // 2, False).question
    kinds = {mixed.draw(number, True).answer[0] for number in range(8)}
    assert kinds == {"("}  # clicks only, also where scenes are wanted

"""vlmopt as a model of lmms-eval: its parts alone, and whole runs of the released harness over generated images."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

import vlmopt
from tests.support.fixtures.lmms import answer, documents, run_file, tasks, weigh
from tests.support.media_files import write_video
from vlmopt.integrations.lmms_eval.conversation import Clip, conversation, rendered, user_turn
from vlmopt.integrations.lmms_eval.decoding import cut, decoding, stops, unused, weighed
from vlmopt.integrations.lmms_eval.inputs import Inputs
from vlmopt.integrations.lmms_eval.setup import load_model, refuse_unknown, whole
from vlmopt.prompt import image_prompt

RED, BLUE = (Image.new("RGB", (56, 56), colour) for colour in ("red", "blue"))
installed = pytest.mark.skipif(
    importlib.util.find_spec("lmms_eval") is None,
    reason="lmms-eval is not installed (README says how to get it without what it does not import)",
)


@pytest.fixture(scope="module")
def loaded() -> tuple[Any, Any]:
    return vlmopt.load_checkpoint("tiny-qwen", dtype="float32")


def test_words_and_images_keep_their_order(loaded: tuple[Any, Any]) -> None:
    def part(url: Any) -> dict[str, Any]:
        return {"type": "image", "url": url}

    messages = [
        {"role": "user", "content": [part(RED), {"type": "text", "text": "first"}, part(BLUE)]},
        {"role": "assistant", "content": [{"type": "text", "text": "seen"}]},
        {"role": "user", "content": "second"},
    ]
    asked = conversation(messages)
    assert [image.getpixel((0, 0)) for image in asked.images] == [(255, 0, 0), (0, 0, 255)]
    pad = loaded[1].image_token
    text = rendered(loaded[1], asked)
    places = [text.index(pad), text.index("first"), text.rindex(pad), text.index("seen"), text.index("second")]
    assert places == sorted(places)
    assert text.count(pad) == 2


def test_visuals_of_simple_tasks(tmp_path: Path) -> None:
    RED.save(path := tmp_path / "red.png")
    asked = conversation(user_turn([str(path), RED], "Which?"))
    assert [image.size for image in asked.images] == [(56, 56)] * 2
    assert asked.words == "Which?"
    assert conversation(user_turn(None, "Which?")).images == []
    assert conversation(user_turn(["clip.mp4"], "What?")).clip == Clip("clip.mp4")
    with pytest.raises(TypeError, match="a task gives dict to look at"):
        user_turn([{"array": []}], "What?")


def test_clips_and_what_cannot_be_asked() -> None:
    def turn(*content: dict[str, Any]) -> list[dict[str, Any]]:
        return [{"role": "user", "content": list(content)}]

    clip = {"type": "video", "url": "a.mp4", "start_time": 1.0, "end_time": 2.0}
    assert conversation(turn(clip)).clip == Clip("a.mp4", 1.0, 2.0)
    inside = {"type": "video", "url": {"video": "a.mp4", "video_start": 3.0}}
    assert conversation(turn(inside)).clip == Clip("a.mp4", 3.0, None)
    for bad, why in (
        ([{"type": "audio", "url": {}}], "'audio'"),
        ([clip, clip], "2 videos"),
        ([clip, {"type": "image", "url": RED}], "1 videos and 1 images"),
    ):
        with pytest.raises(ValueError, match=why):
            conversation(turn(*bad))


@pytest.mark.parametrize(
    ("wanted", "sampled"),
    [
        ({}, False),
        ({"temperature": 0, "do_sample": True}, False),
        ({"temperature": 0.7}, True),
        ({"temperature": 0.7, "do_sample": False}, False),
        ({"do_sample": True}, True),
    ],
)
def test_greedy_or_sampled(wanted: dict[str, Any], sampled: bool) -> None:
    settings = decoding({**wanted, "max_new_tokens": 5, "top_p": 0.5, "num_beams": None})
    assert settings["do_sample"] is sampled
    assert settings["max_new_tokens"] == 5
    assert settings["top_p"] == (0.5 if sampled else None)
    assert "num_beams" not in settings


def test_ends_of_answers() -> None:
    assert cut("yes\nQ: next", stops({"until": ["Q:", "\n"]})) == "yes"
    assert cut("one\n\ntwo", stops({"until": ["\n\n"]})) == "one\n\ntwo"  # lmms-eval writes it for every task
    assert stops({"until": "Q:"}) == ["Q:"]
    assert stops({"until": None}) == stops({}) == []
    with pytest.raises(TypeError, match="until=5"):
        stops({"until": 5})
    assert unused({"seed": 1, "image_aspect_ratio": "pad", "temperature": 0, "until": []}) == {
        "seed",
        "image_aspect_ratio",
    }


def test_losses_leave_padding_out() -> None:
    logits = torch.log(torch.tensor([[[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]], [[0.2, 0.6, 0.2], [0.9, 0.05, 0.05]]]))
    tokens, valid = torch.tensor([[0, 2], [1, 2]]), torch.tensor([[True, True], [True, False]])
    losses, greedy = weighed(logits.unbind(1), tokens, valid)
    expected = -torch.log(torch.tensor([0.5 * 0.1, 0.6])) / torch.tensor([2, 1])
    torch.testing.assert_close(losses, expected)
    assert greedy.tolist() == [False, True]


def test_area_bounds_and_ragged_batches(loaded: tuple[Any, Any]) -> None:
    model, processor = loaded
    asked = [conversation(user_turn([RED.resize(size)], "What is red?")) for size in ((224, 224), (280, 140))]
    own = Inputs.of(model, processor, None, None, 4).batch(asked, model)
    small = Inputs.of(model, processor, None, 112 * 112, 4).batch(asked, model)
    assert own["image_grid_thw"].prod(1).tolist() == [256, 200]
    assert max(small["image_grid_thw"].prod(1).tolist()) <= 64
    assert own["attention_mask"][:, -1].tolist() == [1, 1]
    assert own["attention_mask"][1, 0] == 0
    with pytest.raises(ValueError, match="min_pixels is 20000, more than max_pixels, 10000"):
        Inputs.of(model, processor, 20000, 10000, 4)
    with pytest.raises(ValueError, match="images of one size"):
        Inputs.of(*vlmopt.load_checkpoint("tiny-llava"), None, 10000, 4)


def test_a_video_is_asked_about(loaded: tuple[Any, Any], tmp_path: Path) -> None:
    model, processor = loaded
    path = tmp_path / "clip.mp4"
    write_video(path)
    asked = conversation(user_turn([str(path)], "What is red?"))
    inputs = Inputs.of(model, processor, None, None, 2).batch([asked], model)
    assert inputs["video_grid_thw"][0, 0] == 1  # two frames
    assert model.generate(**inputs, max_new_tokens=2).shape[1] > inputs["input_ids"].shape[1]


def test_arguments_that_cannot_be_right() -> None:
    with pytest.raises(ValueError, match=r"'polcy' \(did you mean 'policy'\?\)"):
        refuse_unknown({"polcy": "uniform-50"})
    assert whole("batch_size", "4", 1) == 4
    for bad in ("auto", 0, 1.5, None):
        with pytest.raises(ValueError, match="batch_size must be"):
            whole("batch_size", bad, 1)
    alone, two = (SimpleNamespace(num_processes=n, device=torch.device("cpu")) for n in (1, 2))
    for device, device_map, team in (("cuda:0", None, two), ("auto", "auto", two), ("cpu", "auto", alone)):
        with pytest.raises(ValueError, match=r"leave it out|from one process and without device"):
            load_model("tiny-qwen", device, "auto", device_map, team)
    with pytest.raises(ValueError, match="unknown dtype 'float8'"):
        load_model("tiny-qwen", "auto", "float8", "auto", alone)


def test_the_entry_point_is_declared() -> None:
    found = {point.name: point for point in entry_points(group="lmms_eval.models")}
    assert found["vlmopt"].value == "vlmopt.integrations.lmms_eval:manifest"
    assert callable(found["vlmopt"].load())


# From here on the harness itself.


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return documents(tmp_path_factory.mktemp("images"))


@installed
@pytest.mark.slow
def test_runs_of_the_harness(loaded: tuple[Any, Any], asked: list[dict[str, Any]], tmp_path: Path) -> None:
    """Messages in ragged batches under a policy; a context with choices to weigh on the model as it is."""
    common = {"include_path": str(tasks(tmp_path / "tasks", asked)), "log_samples": True, "device": "cpu"}
    runs = {
        "chat": {"model_args": "pretrained=tiny-qwen,policy=uniform-25", "tasks": "shapes_say", "batch_size": "3"},
        "simple": {"model_args": "pretrained=tiny-qwen", "tasks": "shapes_pick,shapes_say", "force_simple": True},
    }
    plan = run_file(tmp_path, {name: common | run for name, run in runs.items()})
    places = {"HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "lmms_eval", "--config", str(plan)],
        capture_output=True, text=True, env=os.environ | places, cwd=tmp_path, timeout=1200,
    )  # fmt: skip
    said = done.stdout + done.stderr
    found = {name: next((tmp_path / name).rglob("*_results.json"), None) for name in runs}
    assert None not in found.values(), said  # the harness leaves with 0 after a failure, too
    results = {name: json.loads(path.read_text()) for name, path in found.items() if path}
    assert results["chat"]["config"]["model_backend"] == "vlmopt.integrations.lmms_eval.model.Chat (chat)"
    assert results["simple"]["config"]["model_backend"] == "vlmopt.integrations.lmms_eval.model.Simple (simple)"
    assert "settings of a task: image_aspect_ratio" in said

    for name, policy in (("chat", "uniform-25"), ("simple", "dense")):
        with vlmopt.optimized(loaded[0], policy):
            expected = [answer(loaded, document) for document in asked]
        rows = next((tmp_path / name).rglob("*_samples_shapes_say.jsonl")).read_text().splitlines()
        assert [json.loads(row)["filtered_resps"] for row in rows] == expected
        hits = [text == document["answer"] for text, document in zip(expected, asked, strict=True)]
        assert results[name]["results"]["shapes_say"]["hit,none"] == pytest.approx(sum(hits) / len(hits))
    cost = results["chat"]["throughput"]
    assert cost["avg_visual_tokens_kept"] * 4 == pytest.approx(cost["avg_visual_tokens"])
    assert results["simple"]["results"]["shapes_pick"]["acc,none"] == 1.0


@pytest.fixture(scope="module")
def simple(asked: list[dict[str, Any]]) -> Any:
    from vlmopt.integrations.lmms_eval.model import Simple

    model = Simple("tiny-qwen", "uniform-25", device="cpu", dtype="float32", batch_size=3)
    model.task_dict["colours"] = {"test": asked}
    return model


@installed
def test_likelihoods_are_those_of_the_whole_text(loaded: tuple[Any, Any], simple: Any) -> None:
    """Answers of one and more tokens in one batch, against one forward over prompt and answer."""
    model, processor = loaded
    documents = simple.task_dict["colours"]["test"]
    texts = [" " + documents[0]["answer"], " red circle", " blue", documents[3]["answer"], " green square"]
    with vlmopt.optimized(simple.model, "dense"):
        found = weigh(simple, texts)
    vlmopt.optimize(simple.model, "uniform-25")
    for document, text, (loss, greedy) in zip(documents, texts, found, strict=True):
        inputs = image_prompt(processor, document["question"], [Image.open(document["image"])])
        ids = torch.tensor([processor.tokenizer(text.strip(), add_special_tokens=False)["input_ids"]])
        whole = {**inputs, "input_ids": torch.cat([inputs["input_ids"], ids], 1)}
        for name in ("attention_mask", "mm_token_type_ids"):
            if name in inputs:
                whole[name] = torch.cat([inputs[name], torch.full_like(ids, int(name == "attention_mask"))], 1)
        logits = model(**whole).logits[:, -ids.shape[1] - 1 : -1].float()
        assert loss == pytest.approx(-float(logits.log_softmax(-1).gather(2, ids[..., None]).mean()), abs=1e-4)
        assert greedy is bool((logits.argmax(-1) == ids).all())
    assert [greedy for _, greedy in found] == [True, False, False, True, False]


@installed
def test_an_answer_is_weighed_under_the_policy(simple: Any) -> None:
    """Its own greedy answers are the likely ones, and the prompt was pruned before they were seen."""
    said = [answer((simple.model, simple.inputs.processor), one) for one in simple.task_dict["colours"]["test"]]
    assert all(greedy for _, greedy in weigh(simple, said))
    kept = vlmopt.report(simple.model).samples[0]
    assert kept["visual_tokens_kept"] * 4 == kept["visual_tokens"]
    with pytest.raises(ValueError, match="acc_mutual_info"):
        simple.loglikelihood([SimpleNamespace(args=("", "red"))])


@installed
def test_several_rounds_are_refused(simple: Any) -> None:
    with pytest.raises(NotImplementedError, match="generate_until_multi_round"):
        simple.generate_until_multi_round([])

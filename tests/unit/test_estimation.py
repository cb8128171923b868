"""Predictions: configs and their sizes, what policies leave, the roofline's arithmetic, and what is refused."""

from __future__ import annotations

import json
import xml.etree.ElementTree as xml
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import vlmopt
from vlmopt import catalogue
from vlmopt.cli.main import main
from vlmopt.estimation import roofline, work
from vlmopt.estimation.cuts import plan, runs
from vlmopt.estimation.devices import Device, at, curve, made
from vlmopt.estimation.figure import draw
from vlmopt.estimation.scoring import CHOICES, PASSES, Scoring, scoring
from vlmopt.estimation.source import find, known
from vlmopt.estimation.tokens import ImageTokens, image_tokens
from vlmopt.estimation.weights import Layer, Matrices, Parts, Tower, on_meta, parts_of
from vlmopt.policy import Policy
from vlmopt.prompt import image_prompt

# Billions of parameters that the Hub shows for the safetensors of each.
PUBLISHED = {
    "Qwen/Qwen2-VL-2B-Instruct": 2.21,
    "Qwen/Qwen2-VL-7B-Instruct": 8.29,
    "Qwen/Qwen2-VL-72B-Instruct": 73.4,
    "Qwen/Qwen2.5-VL-3B-Instruct": 3.75,
    "Qwen/Qwen2.5-VL-7B-Instruct": 8.29,
    "Qwen/Qwen2.5-VL-32B-Instruct": 33.5,
    "Qwen/Qwen2.5-VL-72B-Instruct": 73.4,
    "Qwen/Qwen3-VL-2B-Instruct": 2.13,
    "Qwen/Qwen3-VL-4B-Instruct": 4.44,
    "Qwen/Qwen3-VL-8B-Instruct": 8.77,
    "Qwen/Qwen3-VL-32B-Instruct": 33.4,
    "Qwen/Qwen3-VL-30B-A3B-Instruct": 31.1,
    "llava-hf/llava-1.5-7b-hf": 7.06,
    "llava-hf/llava-1.5-13b-hf": 13.4,
    "llava-hf/llava-v1.6-vicuna-7b-hf": 7.06,
    "llava-hf/llava-v1.6-vicuna-13b-hf": 13.4,
    "llava-hf/llava-v1.6-mistral-7b-hf": 7.57,
    "llava-hf/llava-onevision-qwen2-0.5b-ov-hf": 0.894,
    "llava-hf/llava-onevision-qwen2-7b-ov-hf": 8.03,
    "OpenGVLab/InternVL3-1B-hf": 0.938,
    "OpenGVLab/InternVL3-2B-hf": 2.09,
    "OpenGVLab/InternVL3-8B-hf": 7.94,
    "OpenGVLab/InternVL3-14B-hf": 15.1,
    "google/gemma-3-4b-it": 4.30,
    "google/gemma-3-12b-it": 12.2,
    "google/gemma-3-27b-it": 27.4,
    "google/paligemma2-3b-mix-224": 3.03,
    "HuggingFaceM4/Idefics3-8B-Llama3": 8.46,
    "HuggingFaceTB/SmolVLM2-2.2B-Instruct": 2.25,
    "HuggingFaceTB/SmolVLM2-256M-Video-Instruct": 0.256,
    "HuggingFaceTB/SmolVLM2-500M-Video-Instruct": 0.507,
    "mistralai/Mistral-Small-3.1-24B-Instruct-2503": 24.0,
}
SEVEN = "Qwen/Qwen2.5-VL-7B-Instruct"
POLICIES = (
    "balanced",
    "fastv:keep_ratio=0.3,layer=2",
    "pyramid_drop:keep_ratio=0.125,layers=[1,3,5]",
    "uniform:keep_tokens=50",
    "resize:keep_ratio=0.25",
    "uniform:keep_ratio=0.5+fastv:keep_ratio=0.1,layer=3",
    "sparse_vlm:keep_ratio=0.2,layers=[1,2,4]",
)


def test_every_shipped_config_is_checked() -> None:
    assert set(known()) == PUBLISHED.keys()


@pytest.mark.parametrize("name", PUBLISHED)
def test_sizes_of_shipped_configs(name: str) -> None:
    """The published number of parameters, to its last digit."""
    parts = parts_of(on_meta(find(name).config))
    assert parts.parameters / 1e9 == pytest.approx(PUBLISHED[name], rel=0.005)


@pytest.fixture(scope="module")
def loaded() -> tuple[Any, Any]:
    return vlmopt.load_checkpoint("tiny-qwen")


@pytest.mark.parametrize("policy", POLICIES)
def test_lengths_are_those_of_the_report(policy: str, loaded: tuple[Any, Any]) -> None:
    """Tokens of the prompt, and visual tokens as a mean over layers, as a real run counts them."""
    model, processor = loaded
    inputs = image_prompt(processor, "Where is it?", [Image.new("RGB", (280, 210), "white")])
    with vlmopt.optimized(model, policy):
        model.generate(**inputs, max_new_tokens=2, do_sample=False)
        sample = vlmopt.report(model).samples[0]
    source = find("tiny-qwen")
    seen = image_tokens((210, 280), source.config, source.settings)
    text = inputs["input_ids"].shape[1] - seen.tokens
    mine = plan(Policy.load(policy), [seen], text, len(model.model.language_model.layers), model.config, None, policy)
    assert mine.text + seen.tokens == sample["prompt_tokens"]
    assert sum(mine.visual) / len(mine.visual) == pytest.approx(sample["layer_average"], abs=1e-9)


def test_a_policy_that_keeps_everything_costs_nothing() -> None:
    found = vlmopt.estimate("tiny-qwen", image="280x280", policies=["uniform:keep_ratio=1.0"], devices=["a100", "a100"])
    dense, same = found.predictions
    assert {**dense.to_dict(), "policy": ""} == {**same.to_dict(), "policy": ""}


def test_a_large_batch_costs_so_many_samples() -> None:
    one, many = (
        vlmopt.estimate("tiny-qwen", image="280x280", policies=[], devices=["a100"], batch=batch).predictions[0]
        for batch in (1, 10**9)
    )
    assert many.vision_flops == pytest.approx(10**9 * one.vision_flops)
    assert not many.fits


def toy(**more: Any) -> Device:
    row = {
        "title": "toy", "memory_gb": 1, "bandwidth_gbs": 1, "peak_tflops": {"float32": 1e-3, "float16": 2e-3},
        "products": [[1, 0.5]], "attention": [[1, 0.25]], "stream": 0.5, "between": 0.1, "block_us": 1000,
        "step_us": 10, "overlaps": True,
    }  # fmt: skip
    return made("toy", {**row, **more})


def test_seconds_by_hand() -> None:
    """1 GFLOP/s at half, 1 GB/s at half: what is slower counts; the rest comes on top."""
    products = work.Work(products=1e9, weights=1e6, rows=4)
    assert roofline.seconds(products, toy(), "float32") == pytest.approx(2.0)
    reading = work.Work(products=1e6, weights=1e9, rows=4)
    assert roofline.seconds(reading, toy(), "float32") == pytest.approx(8.0)
    more = work.Work(products=1e9, rows=4, visible=1e9, attention=2e9, values=1e6, keys=1e6)
    assert roofline.seconds(more, toy(), "float32") == pytest.approx(2 + 4 + 4e6 / 0.5e9 + 4e6 / 0.1e9)
    assert roofline.choosing(Scoring(5e8, 1e6, 100), toy()) == pytest.approx(1 + 4e6 / 0.5e9 + 1e-3)


def test_the_host_counts_where_it_is_slower_or_waits() -> None:
    small = work.Work(products=1e6, rows=4, blocks=3)
    assert roofline.seconds(small, toy(), "float32") == pytest.approx(3e-3)
    assert roofline.seconds(small, toy(overlaps=False), "float32") == pytest.approx(5e-3)
    assert roofline.seconds(small, toy(), "float32", "graph") == pytest.approx(2e-3)


def test_curves() -> None:
    points = curve([[10, 0.2], [1000, 0.6]])
    assert [at(points, rows) for rows in (1, 10, 100, 1000, 9999)] == pytest.approx([0.2, 0.2, 0.4, 0.6, 0.6])
    for bad in ([], [[10, 0.2], [1, 0.3]], [[0, 0.1]], [[1, 0]]):
        with pytest.raises(ValueError, match="by rising rows"):
            curve(bad)


def one_layer(**more: Any) -> Parts:
    layer = Layer(Matrices(100, 100, 20), "full", heads=2, key_heads=1, head_dim=5, **more)
    return Parts(Tower(Matrices(), Matrices(), 0, 0, 0, 0, 0), Matrices(), (layer,), Matrices(), Matrices(), 100, 10, 7)


def test_work_of_a_layer_by_hand() -> None:
    """Products 2 * 100 a row; attention 4 * 10 a pair; a cached token 2 * 5 numbers."""
    (layer,) = work.prefill(one_layer(), [6])[1:-1]
    assert (layer.products, layer.attention, layer.visible, layer.weights) == (1200, 40 * 36, 40 * 21, 100)
    (step,) = work.decode(one_layer(), [6], batch=2)[1:-1]
    assert (step.products, step.attention, step.keys) == (400, 2 * 40 * 7, 2 * 10 * 7)
    assert work.cached(one_layer(), [6]) == 60
    assert work.cached(one_layer(window=4), [6]) == 40
    (windowed,) = work.prefill(one_layer(window=4), [6])[1:-1]
    assert windowed.visible == 40 * (1 + 2 + 3 + 4 + 4 + 4)


def test_experts_that_no_row_is_sent_to_are_not_read() -> None:
    sparse = Matrices(per_row=10, stored=100, experts=80, of=8, at_once=2)
    assert sparse.read(1) == pytest.approx(20 + 80 / 4)
    assert sparse.read(1e6) == pytest.approx(100)


def test_windows_of_a_tower() -> None:
    """A side of 20 in windows of 8: 8, 8 and 4."""
    assert work.spread(20, 8) == 64 + 64 + 16
    tower = Tower(Matrices(), Matrices(), depth=3, width=2, cls=0, window=8, whole=1)
    grid = ImageTokens(((20, 8),), 0, 0)
    assert work.vision(tower, [grid]).attention == 4 * 2 * (160**2 + 2 * (64 + 64 + 16) * 64)


def test_markers_of_scattered_tokens() -> None:
    """(N - k) (k + 1) / N runs on average: of 4 tokens and 2 kept, 6 choices have 9 runs."""
    assert runs(4, 2) == pytest.approx(9 / 6)


def test_choices_are_those_of_known_methods() -> None:
    assert CHOICES.keys() <= {entry.name for entry in catalogue.built_in()}


def test_evaluations_of_a_zeroth_order_score() -> None:
    """2 m N evaluations of the projector: 128 x 576 x 21 M multiply-adds on LLaVA-1.5."""
    parts, source = parts_of(on_meta(find("llava-hf/llava-1.5-7b-hf").config)), find("llava-hf/llava-1.5-7b-hf")
    seen = image_tokens((336, 336), source.config, {})
    policy = Policy.load("zeroth_order:keep_tokens=64,estimator=finite_difference,combine=sensitivity")
    found = scoring(plan(policy, [seen], 60, 32, source.config, None, "zoo"), parts)
    assert found.flops == pytest.approx(2 * 128 * 576 * (1024 * 4096 + 4096 * 4096))


@pytest.mark.parametrize("line", ["resize:keep_ratio=0.25", "pixel_redundancy", "ui_graph:keep_ratio=0.25"])
def test_pixels_that_a_method_reads_are_priced(line: str) -> None:
    """Two frames of 1288 x 812 pixels in three colours, whatever is left of them."""
    source = find(SEVEN)
    parts, seen = parts_of(on_meta(source.config)), image_tokens((800, 1280), source.config, {})
    found = scoring(plan(Policy.load(line), [seen], 60, 28, source.config, 0.5, "pixels"), parts)
    assert found.values == pytest.approx(PASSES * 2 * 3 * 1288 * 812, rel=0.01)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "nobody/Qwen"}, "cannot be had from the Hub"),
        ({"model": "Qwen/Qwen2.5-VL-7B-Instrukt"}, "did you mean"),
        ({"model": "no such"}, "no config.json, no directory"),
        ({"image": "wide"}, "WIDTHxHEIGHT"),
        ({"image": (1, 2, 3)}, "WIDTHxHEIGHT"),
        ({"images": -1}, "images must be a whole number >= 0"),
        ({"new_tokens": 0}, "new_tokens must be a whole number >= 1"),
        ({"batch": True}, "batch must be"),
        ({"images": 10**12}, "images must be a whole number >= 0 and <= 10000"),
        ({"new_tokens": 10**400}, "new_tokens must be a whole number >= 1 and <= 1000000000"),
        ({"devices": ["h10"]}, "unknown device 'h10'.*h100"),
        ({"devices": []}, "no device"),
        ({"dtype": "fp8"}, "unknown dtype 'fp8'"),
        ({"engine": "vllm"}, "unknown engine 'vllm'"),
        ({"assume_keep": 0}, "assume_keep must be > 0"),
        ({"policies": ["fastv:keep_ratio=0.1,layer=60"]}, "cuts before layer 60, the model has 28"),
        ({"policies": ["screens"]}, "--assume-keep"),
        ({"policies": ["resize:keep_ratio=0.2"], "model": "llava-hf/llava-1.5-7b-hf"}, "cannot act on pixels of llava"),
    ],
)
def test_refusals(arguments: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model = arguments.pop("model", SEVEN)
    with pytest.raises(ValueError, match=message):
        vlmopt.estimate(model, **{"devices": ["h100"], **arguments})


def test_keys_that_are_no_heads_are_refused(tmp_path: Path) -> None:
    """DeepSeek's latent attention keeps neither keys nor values."""
    text = {"model_type": "deepseek_v3", "num_hidden_layers": 1, "vocab_size": 64}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava", "text_config": text}))
    with pytest.raises(ValueError, match="DeepseekV3Attention has no head_dim"):
        vlmopt.estimate(str(tmp_path), devices=["h100"])


def test_pixels_of_a_tower_of_convolutions() -> None:
    """Its rows are pixels, of three colours."""
    parts = parts_of(on_meta(find(SEVEN).config))
    parts = replace(parts, tower=replace(parts.tower, width=0))
    images = (ImageTokens(grids=((256, 256),), projected=16, tokens=16),)
    one = plan(Policy.load("ui_graph:keep_ratio=0.25"), images, 60, 28, find(SEVEN).config, None, "ui_graph")
    assert scoring(one, parts).values == PASSES * 3 * 256**2


def test_policies_are_no_text() -> None:
    with pytest.raises(TypeError, match="must be a list or a dict"):
        vlmopt.estimate(SEVEN, policies="balanced")
    with pytest.raises(TypeError, match="devices must be a list of names, got 'h100'"):
        vlmopt.estimate(SEVEN, devices="h100")


def test_what_is_not_modelled_is_said() -> None:
    found = vlmopt.estimate(
        SEVEN, policies=["sinks", "long-video", "screens-30"], devices=["h100"], assume_keep=0.5
    )  # fmt: skip
    notes = {one.policy: " ".join(one.notes) for one in found.predictions}
    assert "time of corrections is not modelled" in notes["sinks"]
    assert "sparse prefill is not modelled" in notes["long-video"]
    assert "markers" in notes["screens-30"]
    assert "leave 50 %" in notes["screens-30"]
    assert notes["dense"] == ""
    assert notes["screens-30"].split()[0] in str(found)


@pytest.mark.parametrize("policy", ["snap_kv:keep_ratio=0.25", "snap_kv:keep_ratio=0.25,protect=ends"])
def test_a_cache_that_is_cut_behind_the_prompt(policy: str) -> None:
    """The prompt costs the same; each of 28 layers keeps a quarter of what competes, 2 x 4 x 128 numbers a token."""
    dense, cut = vlmopt.estimate(SEVEN, policies=[policy], devices=["t4"], new_tokens=1).predictions
    assert (cut.prefill_flops, cut.prefill_ms) == (dense.prefill_flops, dense.prefill_ms)
    competing = 1334 if "ends" not in policy else 1334 + 62 - 4 - 8
    assert dense.kv_bytes - cut.kv_bytes == pytest.approx(0.75 * competing * 28 * 2 * 4 * 128 * 2)
    assert cut.token_ms < dense.token_ms


def test_what_an_eviction_leaves_is_known_behind_the_prompt() -> None:
    """One layer at a time is whole; adaptive budgets wait for all layers, so that the most is the prompt's cache."""
    policies = ["snap_kv:keep_ratio=0.1", "vl_cache:keep_ratio=0.1"]
    dense, even, adaptive = vlmopt.estimate(SEVEN, policies=policies, devices=["h100"], new_tokens=1).predictions
    layer = 2 * 4 * 128 * 2
    assert dense.kv_peak_bytes == dense.kv_bytes
    assert even.kv_peak_bytes - (even.kv_bytes - 28 * layer) == pytest.approx(0.9 * 1334 * layer)
    assert adaptive.kv_peak_bytes == dense.kv_bytes - 28 * layer  # without the generated token
    assert dense.peak_bytes > adaptive.peak_bytes > even.peak_bytes
    assert dense.largest_batch <= adaptive.largest_batch < even.largest_batch
    assert "choosing keys" in " ".join(even.notes)


def test_layers_with_windows_keep_their_keys() -> None:
    gemma = "google/gemma-3-4b-it"
    dense, cut = vlmopt.estimate(gemma, policies=["key_diff:keep_ratio=0.1"], devices=["h100"], text=4000).predictions
    layers = parts_of(on_meta(find(gemma).config)).layers
    full = sum(layer.kind == "full" for layer in layers)
    assert 0 < full < len(layers)
    gone = full * 0.9 * dense.visual_tokens * 2 * layers[0].key_heads * layers[0].head_dim * 2
    assert dense.kv_bytes - cut.kv_bytes == pytest.approx(gone, rel=1e-6)


def test_configs_from_files(tmp_path: Path) -> None:
    """A file, or a directory with its processor's settings, in either of the two places where they are kept."""
    config = {"model_type": "qwen2_5_vl", "vision_config": {"depth": 2}, "num_hidden_layers": 2, "hidden_size": 256}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert find(str(tmp_path / "config.json")).settings == {}
    assert find(str(tmp_path)).settings == {}
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": {"max_pixels": 784}}))
    assert find(str(tmp_path)).settings == {"max_pixels": 784}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"max_pixels": 1568}))
    assert find(str(tmp_path)).settings == {"max_pixels": 1568}
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="no model_type"):
        find(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="no vision-language model"):
        find(str(tmp_path))
    config_of = find(SEVEN).config
    config_of.quantization_config = {"bits": 4}
    with pytest.raises(ValueError, match="quantised"):
        on_meta(config_of)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": -1}, "no config can be made|cannot make"),
        ({"hidden_size": "big"}, "no config can be made|cannot make"),
        ({"num_attention_heads": 0}, "cannot make a qwen2_5_vl of this config"),
        ({"vision_config": {"patch_size": 0, "depth": 2}}, "is 0: .* is empty|cannot make"),
        ({"vision_config": {"spatial_merge_size": 0, "depth": 2}}, "is 0: .* is empty|cannot make"),
        ({"model_type": "llava_next", "image_grid_pinpoints": []}, "image_grid_pinpoints of the config is empty"),
    ],
)
def test_damaged_configs_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    """Releases of transformers notice them in one place or another, with errors of many kinds."""
    config = {"model_type": "qwen2_5_vl", "vision_config": {"depth": 2}, "num_hidden_layers": 2, "hidden_size": 256}
    (tmp_path / "config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(ValueError, match=message):
        vlmopt.estimate(str(tmp_path / "config.json"), devices=["h100"])


def test_the_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    line = ["estimate", "--model", "tiny-qwen", "--image", "280x280", "--policy", "gentle", "--device", "h100", "t4"]
    figure = tmp_path / "stages.svg"
    assert main([*line, "--figure", str(figure)]) == 0
    out = capsys.readouterr().out
    assert "400 visual" in out
    assert "Predicted, not measured" in out
    drawn = xml.parse(figure).getroot()
    assert len([e for e in drawn.iter() if e.tag.endswith("title")]) >= 8  # stages of four bars
    assert main([*line, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["kind"] == "prediction"
    assert [(p["policy"], p["device"]) for p in data["predictions"]] == [
        ("dense", "h100"), ("gentle", "h100"), ("dense", "t4"), ("gentle", "t4")
    ]  # fmt: skip
    assert main([*line, "--figure", "stages.png"]) == 2
    assert "must end in .svg" in capsys.readouterr().err
    for word in ("--models", "--devices"):
        assert main(["estimate", word]) == 0
    assert "Qwen2.5-VL-7B" in capsys.readouterr().out


def test_names_in_a_figure_are_escaped() -> None:
    found = vlmopt.estimate("tiny-qwen", image="280x280", policies={"a<b & c": "gentle"}, devices=["h100"])
    assert "a&lt;b &amp; c" in draw(found)
    xml.fromstring(draw(found))


def test_recorded_ratios_are_close() -> None:
    """Dense over policy, measured on a CPU and predicted from its calibration: twelve at least within 15 %."""
    root = Path(__file__).parents[2]
    text = (root / "benchmarks" / "results" / "estimate.jsonl").read_text(encoding="utf-8")
    newest = {row["model"]: rows for rows in (json.loads(line)["rows"] for line in text.splitlines()) for row in rows}
    rows = [row for model, found in newest.items() for row in found if row["model"] == model]
    assert sum(row["predicted"] / row["measured"] == pytest.approx(1, abs=0.15) for row in rows) >= 12

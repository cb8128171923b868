"""Videos and many images: a real mp4 end to end, budgets per frame, per image and per tile."""

from __future__ import annotations

import copy
import inspect
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

import vlmopt
from tests.support.families import FAMILIES, Image, Video
from tests.support.mechanism import forward
from vlmopt.frames import load_video
from vlmopt.prompt import video_prompt
from vlmopt.pruning import EVS, DivPrune, Random, Selector, Uniform, ZeroOrder

WIDTH, HEIGHT, SQUARE = 224, 168, 28  # pixels; a grid of 12 x 16 cells of 14


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seconds of a still, noisy background on which one square moves to the right along rows 6 and 7."""
    path = tmp_path_factory.mktemp("clip") / "moving.mp4"
    background = np.random.default_rng(0).integers(60, 190, (HEIGHT // 14, WIDTH // 14, 3)).astype(np.uint8)
    background = background.repeat(14, 0).repeat(14, 1)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 8.0, (WIDTH, HEIGHT))
    for i in range(16):
        frame = background.copy()
        frame[84 : 84 + SQUARE, 12 * i : 12 * i + SQUARE] = (250, 20, 20)
        writer.write(frame)
    writer.release()
    return path


@pytest.fixture(scope="module")
def loaded() -> Any:
    return vlmopt.load_checkpoint("tiny-qwen")


def ask(loaded: Any, clip: Path, method: Selector) -> vlmopt.Report:
    model, processor = loaded
    video = load_video(clip, fps=4, patch_size=14, merge_size=1)
    inputs = video_prompt(processor, model, "Describe the picture.", video)
    with vlmopt.optimized(model, method):
        model.generate(**inputs, max_new_tokens=3)
        return vlmopt.report(model)


def test_what_moves_stays(loaded, clip):
    report = ask(loaded, clip, EVS(keep_ratio=0.4))
    (m,) = report.maps(0)
    t, h, w = m.grid
    assert t >= 4
    kept = m.kept.view(t, h, w)
    assert bool(kept[0].all())  # the first frame is whole
    later = kept[1:]
    moving = later[:, 6:8].float().mean()
    assert moving > 0.4
    assert moving > 4 * later[:, [0, 1, 2, 3, 4, 9, 10, 11]].float().mean()
    assert report.ms["vision"] is not None
    assert report.ms["scoring"] is not None


@pytest.mark.parametrize("method", [DivPrune, Random, ZeroOrder, Uniform])
def test_every_frame_keeps_its_share(loaded, clip, method):
    report = ask(loaded, clip, method(keep_ratio=0.25, segment="frame", allocation="equal"))
    (m,) = report.maps(0)
    per_frame = m.kept.view(m.grid[0], -1).sum(1)
    assert int(m.kept.sum()) == int(0.25 * len(m.kept) + 0.5)
    assert int(per_frame.max() - per_frame.min()) <= 1


def test_frames_that_change_get_more(loaded, clip):
    still = ask(loaded, clip, DivPrune(keep_ratio=0.3, segment="frame", allocation="first_whole"))
    (m,) = still.maps(0)
    per_frame = m.kept.view(m.grid[0], -1).sum(1)
    assert int(per_frame[0]) == m.grid[1] * m.grid[2]
    change = ask(loaded, clip, DivPrune(keep_ratio=0.3, segment="frame", allocation="temporal_change"))
    (m,) = change.maps(0)
    assert int(m.kept.view(m.grid[0], -1).sum(1).argmax()) == 0  # nothing came before it, so all of it is change


@pytest.mark.parametrize("method", [EVS(keep_ratio=0.5), DivPrune(keep_ratio=0.5, segment="frame", allocation="equal")])
@pytest.mark.parametrize("name", ["qwen2_5_vl", "llava_onevision"])
def test_frames_of_other_families(name, method):
    family = FAMILIES[name]
    batch = family.inputs([[5, Video(0), 7]])
    with vlmopt.optimized(copy.deepcopy(family.build()), method) as model:
        forward(model, batch)
        report = vlmopt.report(model)
    (m,) = report.maps(0)
    cells = (m.coords >= 0).all(1)
    assert m.grid is not None
    assert m.grid[0] > 1
    kept = m.kept[cells].view(m.grid[0], -1)
    assert int(m.kept.sum()) == int(0.5 * len(m.kept) + 0.5)
    if isinstance(method, DivPrune):
        assert int(kept.sum(1).max() - kept.sum(1).min()) <= 1
    else:
        assert bool(kept[0].all())


@pytest.mark.parametrize(("allocation", "least"), [("proportional", 1), ("equal", 1), ("proportional", 3)])
@pytest.mark.parametrize("name", ["qwen2_5_vl", "llava", "internvl"])
def test_every_image_keeps_its_share(name, allocation, least):
    family = FAMILIES[name]
    batch = family.inputs([[5, Image(0), 3, Image(1), Image(2), 7]])
    method = DivPrune(keep_ratio=0.3, allocation=allocation, min_per_segment=least)
    with vlmopt.optimized(copy.deepcopy(family.build()), method) as model:
        forward(model, batch)
        maps = vlmopt.report(model).maps(0)
    kept, sizes = [int(m.kept.sum()) for m in maps], [len(m.kept) for m in maps]
    assert sum(kept) == int(0.3 * sum(sizes) + 0.5)
    if sum(min(least, size) for size in sizes) <= sum(kept):  # while the budget lasts
        assert all(min(least, size) <= k <= size for k, size in zip(kept, sizes, strict=True))
    fair = [sum(kept) * (size / sum(sizes) if allocation == "proportional" else 1 / len(sizes)) for size in sizes]
    if least == 1:
        assert all(abs(k - f) < 1 for k, f in zip(kept, fair, strict=True))


def test_tower_runs_once_and_times_stand_apart(loaded, clip, monkeypatch):
    model, _ = loaded
    calls = []
    kept = model.model.visual.forward
    monkeypatch.setattr(model.model.visual, "forward", lambda *a, **k: (calls.append(1), kept(*a, **k))[1])
    report = ask(loaded, clip, ZeroOrder(keep_ratio=0.25))
    assert len(calls) == 1
    assert all(report.ms[stage] > 0 for stage in ("vision", "scoring", "prefill"))
    assert report.ms["vision"] + report.ms["scoring"] + report.ms["prefill"] <= report.ms["total"] * 1.01


def test_features_computed_beforehand_are_not_encoded_again():
    """Precomputed encoder output serves methods that read embeddings; those that read the projector say why not."""
    family = FAMILIES["qwen2_5_vl"]
    model, batch = copy.deepcopy(family.build()), family.inputs([[5, Image(0), 7]])
    if "mm_encoder_outputs" not in inspect.signature(type(model).forward).parameters:
        pytest.skip("this release takes no precomputed features")
    with torch.no_grad():
        pixels, grid = batch.inputs["pixel_values"], batch.inputs["image_grid_thw"]
        features = model.get_image_features(pixels, grid)
    inputs = {k: v for k, v in batch().items() if not k.startswith("pixel")}
    outputs = {"image": features} if hasattr(features, "pooler_output") else None
    if outputs is None:
        pytest.skip("this release returns plain tensors")
    for method, runs in ((DivPrune(keep_ratio=0.5), True), (ZeroOrder(keep_ratio=0.5), False)):
        with vlmopt.optimized(model, method), torch.no_grad():
            model(**inputs, mm_encoder_outputs=outputs)
            report = vlmopt.report(model)
        assert bool(report.applied) is runs, report
        assert runs or any("projector did not run" in line["why"] for line in report.skipped)


def test_segments_do_not_depend_on_the_batch():
    family = FAMILIES["llava"]
    rows: list[list[Any]] = [[5, Image(0), Image(0), 7], [3, Image(0), 6]]
    with vlmopt.optimized(copy.deepcopy(family.build()), DivPrune(keep_ratio=0.3)) as model:
        batch = family.inputs(rows)
        forward(model, batch)
        together = [m.kept.tolist() for m in vlmopt.report(model).maps(0)]
        alone = {k: v[: len(v) - 1] if k != "pixel_values" else v[:2] for k, v in batch().items()}
        with torch.no_grad():
            model(**alone)
        assert [m.kept.tolist() for m in vlmopt.report(model).maps(0)] == together

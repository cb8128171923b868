"""Pruning before the vision tower: the tower really runs on what is left, and says of it what a masked one would."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

import vlmopt
from tests.support.compact import compact_logits
from tests.support.families import FAMILIES, GREEDY, LAYERS, Batch, Image, Video
from tests.support.listen import by_name, listen
from tests.support.masked_tower import MaskedTower, parts
from tests.support.mechanism import LOGITS, NEW_TOKENS, TOLERANCE, forward, gap, generate, stored_lengths
from tests.support.reference import Reference, Removal, Stage
from tests.support.snapshot import differences, snapshot
from vlmopt.pruning import (
    DivPrune,
    FastV,
    PixelRedundancy,
    Pixels,
    Projector,
    Random,
    Resize,
    VisionAttention,
    VisionKeys,
    VisionZip,
    VisualEmbeds,
)

QWENS = [FAMILIES[name] for name in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5") if name in FAMILIES]
ROWS: list[list[Any]] = [[5, Image(0), 7], [3, Image(1), 4, Image(2), 6], [9]]
FILMS: list[list[Any]] = [[4, Video(0), 5], [2, Video(1), 3, Video(0), 4]]


def flatten(pixels: Tensor, grids: Tensor, rows: int) -> None:
    """Give the upper `rows` rows of cells of every image one colour; later frames repeat the lower ones."""
    start = 0
    for number, (t, h, w) in enumerate(grids.tolist()):
        frames = pixels[start : start + t * h * w].view(t, h // 2, w // 2, 4, -1)
        frames[:, :rows] = 0.1 * number
        frames[1:, -1, number % 2 :] = frames[0, -1, number % 2 :]  # nothing is left of the frames of the first film
        start += t * h * w


def flat(family, rows=ROWS, upper: int = 2) -> Batch:
    """A batch whose images have a flat upper part: whole windows of a tower with windows are redundant."""
    batch = family.inputs(rows)
    for pixels, grid in (("pixel_values", "image_grid_thw"), ("pixel_values_videos", "video_grid_thw")):
        if pixels in batch.inputs:
            flatten(batch.inputs[pixels], batch.inputs[grid], upper)
    return batch


def chosen(pixels: Tensor, grids: Tensor, copies: int) -> tuple[Tensor, Tensor]:
    """Kept cells and anchors of all images; the rule itself has tests of its own."""
    keep, anchor, start = [], [], 0
    for t, h, w in grids.tolist():
        cells = pixels[start : start + t * h * w].view(t, h // 2, w // 2, 4, 3, 2, 196)[..., :copies, :].flatten(-2)
        found = PixelRedundancy().encode(cells, torch.ones(3))
        keep.append(found.novelty >= 0)
        anchor.append(found.anchor + start // 4)
        start += t * h * w
    return torch.cat(keep), torch.cat(anchor)


def images(pixels: Tensor, grids: Tensor) -> tuple[Tensor, Tensor]:
    return chosen(pixels, grids, 1)


def films(pixels: Tensor, grids: Tensor) -> tuple[Tensor, Tensor]:
    return chosen(pixels, grids, 2)


def everything(pixels: Tensor, grids: Tensor) -> tuple[Tensor, Tensor]:
    return torch.ones(len(pixels) // 4, dtype=torch.bool), torch.arange(len(pixels) // 4)


@torch.no_grad()
def tower_output(model: Any, batch: Batch, policy: Any) -> tuple[list[list[Tensor]], vlmopt.Report]:
    """What the tower of an optimized model returned, run by run."""
    seen: list[list[Tensor]] = []
    with vlmopt.optimized(model, policy):
        handle = model.model.visual.register_forward_hook(lambda module, args, out: seen.append(parts(out)))
        forward(model, batch)
        handle.remove()
        return seen, vlmopt.report(model)


@pytest.mark.parametrize("attn", ["eager", "sdpa"])
@pytest.mark.parametrize("prompts", ["images", "films"])
@by_name(QWENS)
def test_the_tower_equals_a_masked_one(family, prompts, attn):
    batch = flat(family) if prompts == "images" else flat(family, FILMS, upper=1)
    names = ("pixel_values", "image_grid_thw") if prompts == "images" else ("pixel_values_videos", "video_grid_thw")
    pixels, grid = (batch.inputs[name] for name in names)
    choose = images if prompts == "images" else films
    keep, _ = choose(pixels, grid)
    assert 0.2 < keep.float().mean() < 0.8
    expected = MaskedTower(copy.deepcopy(family.build("eager")), choose).features(pixels, grid)
    (got,), report = tower_output(copy.deepcopy(family.build(attn)), batch, PixelRedundancy())
    assert len(got) == len(expected)
    for mine, wanted in zip(got, expected, strict=True):
        assert gap(mine[keep], wanted[keep]) < TOLERANCE
    dense = MaskedTower(copy.deepcopy(family.build("eager")), everything).features(pixels, grid)
    assert gap(got[0][keep], dense[0][keep]) > 100 * TOLERANCE  # what left was seen before
    assert report.tower == {"given": len(pixels), "encoded": 4 * int(keep.sum())}
    assert f"tower    {len(pixels)} patches given, {4 * int(keep.sum())} encoded" in str(report)


@by_name(QWENS)
def test_the_blocks_run_on_the_survivors_alone(family):
    batch = flat(family)
    keep, _ = images(batch.inputs["pixel_values"], batch.inputs["image_grid_thw"])
    model = copy.deepcopy(family.build("sdpa"))
    lengths: list[int] = []
    for module in (model.model.visual.patch_embed, *model.model.visual.blocks):
        module.register_forward_hook(lambda m, args, out: lengths.append(len(out)))
    with vlmopt.optimized(model, PixelRedundancy()):
        forward(model, batch)
    depth = len(model.model.visual.blocks)
    assert lengths[1:] == [4 * int(keep.sum())] * depth


def reference_for(family, batch: Batch, positions: str) -> tuple[Reference, Removal]:
    """The masked LLM behind the masked tower, told which cells leave; nothing of it from the library's runtime."""
    keep, _ = images(batch.inputs["pixel_values"], batch.inputs["image_grid_thw"])
    reference = Reference(family.build("eager"))
    MaskedTower(reference.model, images)
    drop = torch.zeros_like(batch.visual)
    drop[batch.visual] = ~keep  # images come in the order of the rows
    return reference, Removal(batch.real, batch.span, [Stage(0, drop, positions)], LAYERS)


@pytest.mark.parametrize("positions", ["keep", "pospad"])
@by_name([f for f in QWENS if not f.hybrid])
def test_the_whole_model_equals_the_reference(family, positions):
    batch = flat(family)
    reference, removal = reference_for(family, batch, positions)
    reference.remove(removal)
    kept = removal.kept()
    expected = reference.forward(batch())
    answer = reference.generate(batch(), max_new_tokens=NEW_TOKENS, **GREEDY, **LOGITS)
    with vlmopt.optimized(copy.deepcopy(family.build("sdpa")), PixelRedundancy(positions=positions)) as model:
        assert gap(forward(model, batch)[kept], expected[kept]) < TOLERANCE
        out = generate(model, batch)
        assert torch.equal(out.sequences, answer.sequences)
        assert gap(torch.stack(out.logits, 1), torch.stack(answer.logits, 1)) < TOLERANCE
        assert stored_lengths(out.past_key_values) == [removal.lengths[0] + NEW_TOKENS - 1] * LAYERS
        beams = model.generate(**batch(), num_beams=3, max_new_tokens=NEW_TOKENS, **GREEDY)
    assert torch.equal(beams, reference.generate(batch(), num_beams=3, max_new_tokens=NEW_TOKENS, **GREEDY))


@pytest.mark.parametrize("positions", ["keep", "pospad"])
@by_name([f for f in QWENS if f.hybrid])
def test_a_hybrid_decoder_equals_the_compact_reference(family, positions):
    batch = flat(family)
    reference, removal = reference_for(family, batch, positions)
    for module in reference.decoder.layers:
        module._forward_pre_hooks.clear()
    with vlmopt.optimized(copy.deepcopy(family.build("sdpa")), PixelRedundancy(positions=positions)) as model:
        logits = forward(model, batch)
    plain: Any = copy.deepcopy(family.build("sdpa"))
    plain.model.visual = reference.model.model.visual
    for row in range(len(batch.ids)):
        assert gap(logits[row, removal.kept()[row]], compact_logits(plain, batch(), removal, row)[0]) < TOLERANCE


@pytest.mark.parametrize("attn", ["eager", "sdpa"])
@by_name(QWENS)
def test_noise_changes_no_bit(family, attn):
    plain, batch = family.build(attn), family.inputs([*ROWS, *FILMS])
    expected = forward(plain, batch)
    for tolerance in (0.0, 0.05):
        with vlmopt.optimized(copy.deepcopy(plain), PixelRedundancy(tolerance=tolerance)) as model:
            assert torch.equal(forward(model, batch), expected)
            report = vlmopt.report(model)
            assert report.tower["given"] == report.tower["encoded"] > 0
            out = generate(model, batch)
        assert all(map(torch.equal, out.logits, generate(plain, batch).logits))


@by_name(QWENS)
def test_restore_is_exact(family):
    model, batch = copy.deepcopy(family.build("sdpa")), flat(family)
    expected, before = forward(model, batch), snapshot(model)
    vlmopt.optimize(model, [PixelRedundancy(), Random(keep_ratio=0.3)])
    assert not torch.equal(forward(model, batch), expected)
    vlmopt.restore(model)
    assert differences(before, snapshot(model)) == []
    assert torch.equal(forward(model, batch), expected)


def test_a_forward_that_fails_leaves_no_plan_behind():
    family = FAMILIES["qwen2_5_vl"]
    batch = flat(family)
    with vlmopt.optimized(copy.deepcopy(family.build("sdpa")), PixelRedundancy()) as model:
        expected = forward(model, batch)
        merger = model.model.visual.merger.register_forward_hook(broken)
        with pytest.raises(RuntimeError, match="on purpose"):
            forward(model, batch)
        merger.remove()
        outside = model.model.get_image_features(batch.inputs["pixel_values"], batch.inputs["image_grid_thw"])
        assert torch.equal(forward(model, batch), expected)
    plain = family.build("sdpa").model.get_image_features(batch.inputs["pixel_values"], batch.inputs["image_grid_thw"])
    assert torch.equal(torch.cat(tuple(parts(outside)[0])), torch.cat(tuple(parts(plain)[0])))  # nobody asked


def broken(*args: Any) -> None:
    raise RuntimeError("on purpose")


def test_a_video_before_an_image_is_not_mixed_up():
    """Images are encoded before videos, whatever the prompt says."""
    family = FAMILIES["qwen2_5_vl"]
    batch = family.inputs([[4, Video(0), 5, Image(0), 2], [3, Image(2), 3]])
    flatten(batch.inputs["pixel_values"][:64], batch.inputs["image_grid_thw"][:1], 2)
    pixels = {name: batch.inputs[name] for name in ("pixel_values", "pixel_values_videos")}
    with vlmopt.optimized(copy.deepcopy(family.build("sdpa")), PixelRedundancy()) as model:
        forward(model, batch)
        video, image = vlmopt.report(model).maps(0)
    assert bool(video.kept.all())
    assert image.kept.nonzero()[:, 0].tolist() == [0, *range(8, 16)]
    tokens = listen(family, batch, Pixels())[0]
    shown = tokens.signals[Pixels()]
    for item, name in ((0, "pixel_values_videos"), (1, "pixel_values")):
        mine = shown[tokens.item == item]
        assert torch.equal(mine[0, 0, :392], pixels[name][0, :392])


def test_both_frames_of_a_step_count():
    """A patch of a video holds two frames, while an image is one frame twice."""
    family = FAMILIES["qwen2_5_vl"]
    batch = family.inputs([[4, Video(0), 5]])
    frames = batch.inputs["pixel_values_videos"].view(2, 6, 4, 3, 2, 196)
    frames[1] = frames[0]
    frames[1, 4, 2, 1, 1, 7] += 0.5
    with vlmopt.optimized(copy.deepcopy(family.build("sdpa")), PixelRedundancy()) as model:
        forward(model, batch)
        kept = vlmopt.report(model).maps(0)[0].kept.view(2, 6)
    assert bool(kept[0].all())
    assert kept[1].nonzero()[:, 0].tolist() == [4]


@by_name([f for f in QWENS if f.name != "qwen3_5"])
def test_another_selector_chooses_among_the_survivors(family):
    batch = flat(family)
    keep, _ = images(batch.inputs["pixel_values"], batch.inputs["image_grid_thw"])
    with vlmopt.optimized(
        copy.deepcopy(family.build("sdpa")),
        [DivPrune(keep_ratio=0.25, positions="pospad"), FastV(keep_ratio=0.1, layer=3), PixelRedundancy()],
    ) as model:
        forward(model, batch)
        report = vlmopt.report(model)
        out = generate(model, batch)
        assert torch.equal(generate(model, batch, use_cache=False).sequences, out.sequences)
    assert [a["method"] for a in report.applied] == ["pixel_redundancy", "div_prune", "fastv"]
    for row, total in enumerate(batch.total.tolist()):
        kept = torch.cat([m.kept for m in report.maps(row)]) if total else torch.zeros(0, dtype=torch.bool)
        mine = torch.zeros_like(batch.visual)
        mine[batch.visual] = keep
        assert not bool((kept & ~mine[row][batch.visual[row]]).any())
        stages = report.samples[row]["stages"]
        if total:
            assert [s["before"] for s in stages] == [total, int(mine[row].sum()), stages[1]["after"]]
            assert stages[1]["after"] == min(DivPrune(keep_ratio=0.25).budget(total), int(mine[row].sum()))
            assert stages[0]["markers"] == 0
            assert report.samples[row]["visual_tokens_pre_llm"] == stages[1]["after"] + stages[1]["markers"]


@pytest.mark.parametrize(
    ("first", "second", "keep_ratio"),
    [("keep", "keep", 0.3), *((first, "pospad", ratio) for first in ("keep", "pospad") for ratio in (0.3, 0.9))],
)
@by_name(QWENS)
def test_two_cuts_before_the_llm_equal_one_reference(family, first, second, keep_ratio):
    """Both cuts at layer 0 are, for the LLM, one removal, and a marker stands for every run of it."""
    batch = flat(family)
    reference, _ = reference_for(family, batch, second)
    policy = [PixelRedundancy(positions=first), Random(keep_ratio=keep_ratio, positions=second)]
    with vlmopt.optimized(copy.deepcopy(family.build("sdpa")), policy) as model:
        logits, report = forward(model, batch), vlmopt.report(model)
    kept = torch.zeros_like(batch.visual)
    for row in range(len(batch.ids)):
        if batch.total[row]:
            kept[row, batch.visual[row]] = torch.cat([m.kept for m in report.maps(row)])
    removal = Removal(batch.real, batch.span, [Stage(0, batch.visual & ~kept, second)], LAYERS)
    stay = removal.kept()
    for row in range(len(batch.ids)):
        markers = int((stay[row] & batch.visual[row] & ~kept[row]).sum())
        assert report.samples[row]["markers"] == markers
        assert (markers > 0) == (second == "pospad" and bool((batch.visual & ~kept)[row].any()))
    if family.hybrid:
        plain: Any = copy.deepcopy(family.build("sdpa"))
        plain.model.visual = reference.model.model.visual
        for row in range(len(batch.ids)):
            assert gap(logits[row, stay[row]], compact_logits(plain, batch(), removal, row)[0]) < TOLERANCE
    else:
        assert gap(logits[stay], reference.remove(removal).forward(batch())[stay]) < TOLERANCE


@by_name(QWENS)
def test_signals_of_the_tower_are_those_of_the_survivors(family):
    batch = flat(family)
    depth = len(family.build("sdpa").model.visual.blocks)
    needs = (Projector(), VisualEmbeds(), VisionAttention(depth - 1), VisionKeys(depth - 1))
    keep, _ = images(batch.inputs["pixel_values"], batch.inputs["image_grid_thw"])
    heard = listen(family, batch, *needs, before=(PixelRedundancy(),))
    assert sum(len(tokens) for tokens in heard) == int(keep.sum())
    for tokens in heard:
        call, embeds = tokens.signals[Projector()], tokens.signals[VisualEmbeds()]
        assert call.inputs.shape[:2] == (len(tokens), 4)
        with torch.no_grad():
            assert gap(call.function(call.inputs), embeds) < TOLERANCE
        assert not tokens.signals[VisionKeys(depth - 1)].isnan().any()
    received = torch.cat([tokens.signals[VisionAttention(depth - 1)] for tokens in heard])
    grids = batch.inputs["image_grid_thw"]
    assert float(received.sum()) * 4 == pytest.approx(len(grids), abs=1e-4)  # every image's rows sum to 1
    assert bool((received > 0).all())


def test_a_merging_selector_reads_the_survivors_keys():
    family = FAMILIES["qwen2_5_vl"]
    policy = [PixelRedundancy(), VisionZip(keep_ratio=0.3, tower_layer=-1, contextual=0.5)]
    with vlmopt.optimized(copy.deepcopy(family.build("sdpa")), policy) as model:
        logits = forward(model, batch := flat(family))
        report = vlmopt.report(model)
    assert logits[batch.real].isfinite().all()
    assert report.samples[0]["extras"]["merged"] > 0


def test_where_nothing_may_leave_the_image_is_still_sensible():
    """A cut inside rules out all over a static cache: cells that were not encoded show those they stand for."""
    family = FAMILIES["qwen2_5_vl"]
    batch = flat(family, [[5, Image(0), 7]])
    policy = [PixelRedundancy(), FastV(keep_ratio=0.3, layer=2)]
    with vlmopt.optimized(copy.deepcopy(family.build("sdpa")), policy) as model:
        with pytest.warns(UserWarning, match="[Ss]tatic"):
            out = generate(model, batch, cache_implementation="static")
        skipped = vlmopt.report(model).skipped
    assert any(line["what"] == "pruning" for line in skipped)
    reference, _ = reference_for(family, batch, "keep")
    wanted = reference.remove(None).generate(batch(), max_new_tokens=NEW_TOKENS, **GREEDY, **LOGITS)
    assert gap(out.logits[0], wanted.logits[0]) < TOLERANCE


def test_text_alone_and_a_second_turn():
    family = FAMILIES["qwen3_vl"]
    plain, batch = family.build("sdpa"), family.inputs([[7], [4]])
    with vlmopt.optimized(copy.deepcopy(plain), PixelRedundancy()) as model:
        assert torch.equal(forward(model, batch), forward(plain, batch))
        assert vlmopt.report(model).tower is None


def test_half_precision():
    family = FAMILIES["qwen3_vl"]
    batch = flat(family)
    expected = []
    for dtype in (torch.float32, torch.bfloat16):
        inputs = {k: v.to(dtype) if v.is_floating_point() else v for k, v in batch().items()}
        model = copy.deepcopy(family.build("sdpa")).to(dtype)
        with vlmopt.optimized(model, PixelRedundancy()), torch.no_grad():
            expected.append(model(**inputs).logits.float())
            kept = [[m.kept.tolist() for m in vlmopt.report(model).maps(row)] for row in (0, 1)]
    assert kept[0][0][0]
    assert gap(*[logits[0, -1] for logits in expected]) < 0.5  # of a spread of 5


def test_gradients_reach_what_was_encoded():
    family = FAMILIES["qwen3_vl"]
    batch = flat(family)
    with vlmopt.optimized(copy.deepcopy(family.build("sdpa")), PixelRedundancy()) as model:
        model(**batch()).logits[batch.real].square().mean().backward()
        grads = [p.grad for p in model.model.visual.parameters() if p.grad is not None]
    assert grads
    assert all(bool(g.isfinite().all()) for g in grads)
    assert any(bool(g.any()) for g in grads)


@pytest.mark.parametrize("name", ["llava", "internvl", "idefics3", "gemma3"])
def test_towers_that_take_whole_images_are_refused(name):
    model = copy.deepcopy(FAMILIES[name].build("sdpa"))
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"pixel_redundancy: .*whole images.*qwen2_5_vl.*div_prune"):
        vlmopt.optimize(model, PixelRedundancy())
    assert differences(before, snapshot(model)) == []


def test_what_cannot_go_together():
    for pair in ([PixelRedundancy(), Resize(keep_ratio=0.5)], [PixelRedundancy(), PixelRedundancy(tolerance=0.1)]):
        with pytest.raises(ValueError, match="before layer 0"):
            vlmopt.Policy(prune=pair)
    with pytest.raises(ValueError, match="before layer 0"):
        vlmopt.Policy(prune=[PixelRedundancy(), Random(keep_ratio=0.5), DivPrune(keep_ratio=0.2)])
    policy = vlmopt.Policy(prune=[Random(keep_ratio=0.5), PixelRedundancy(tolerance=0.02, distance="mean")])
    assert [m.name for m in policy.prune] == ["pixel_redundancy", "random"]
    assert vlmopt.Policy.load(policy.to_dict()) == policy

"""The row that predicts is never dropped: prompts that end in an image, for every selector, family and way to run."""

from __future__ import annotations

import copy
import dataclasses
import functools
from typing import Any

import pytest
import torch

import vlmopt
from tests.support.compact import compact_logits
from tests.support.families import FAMILIES, GREEDY, HYBRID, LAYERS, MASKABLE, Batch, Family, Image, Video
from tests.support.mechanism import (
    LOGITS,
    TOLERANCE,
    Case,
    DropByOrdinal,
    forward,
    gap,
    generate,
    pattern,
    reference_of,
)
from tests.support.reference import Removal, Stage
from tests.support.replay import Replay, ending_in_images, recording, replayed
from tests.support.selectors import SETTINGS, works_on
from vlmopt.attention_fix import ImageBoost
from vlmopt.families import families
from vlmopt.pruning import FastV, FocusUI, PixelRedundancy, Random, Selector, SparseVLM

ROWS: Any = ((5, Image(0)), (Image(1),), (3, Image(2), 6))  # an image last, alone, and before the question
BARE = (0, 1)
PROMISED = [family for family in FAMILIES.values() if not family.extra]
pytestmark = pytest.mark.usefixtures("untrained_scorer")


def refused(method: Selector) -> bool:
    """Methods that need text behind the image say so, alone and in a batch."""
    return isinstance(method, (SparseVLM, FocusUI)) or getattr(method, "relevance", "none") != "none"


@functools.cache
def replay_of(name: str) -> Replay:
    return Replay(FAMILIES[name])


def last_rows(batch: Batch) -> torch.Tensor:
    """Long[B]: the last real row of every sample."""
    return torch.arange(batch.ids.shape[1]).masked_fill(~batch.real, -1).amax(1)


def check_forward(family: Family, policy: Any, batch: Batch, monkeypatch: pytest.MonkeyPatch) -> vlmopt.Report:
    with vlmopt.optimized(copy.deepcopy(family.build("sdpa")), policy) as model:
        with recording(model, monkeypatch) as record:
            logits = forward(model, batch)
        report, removal = vlmopt.report(model), record.removal(model, batch)
    every, last = torch.arange(len(batch.ids)), last_rows(batch)
    assert bool(removal.kept()[every, last].all())
    expected = replayed(replay_of(family.name), record, removal, batch)
    assert gap(logits[every, last], expected[every, last]) < TOLERANCE
    assert bool((logits[every, last].abs().amax(1) > 0).all())
    return report


def check_budgets(method: Selector, batch: Batch, report: vlmopt.Report) -> None:
    for row, sample in enumerate(report.samples):
        left = int(batch.total[row])
        for cut, stage in zip(method.stages, sample["stages"], strict=True):
            budget = cut.budget(int(batch.total[row]))
            if cut.adaptive:
                assert 0 < stage["after"] <= max(budget, len(sample["items"]))
            else:
                assert stage["after"] == min(budget, left)
            left = stage["after"]


@pytest.mark.parametrize(
    ("family", "method"),
    [
        pytest.param(family, method, id=f"{family.name}-{name}")
        for family in PROMISED
        for name, method in SETTINGS.items()
        if works_on(families()[family.name], method) and not refused(method)
    ],
)
def test_every_selector_keeps_the_row_that_predicts(family, method, monkeypatch):
    batch = ending_in_images(family, ROWS, BARE)
    check_budgets(method, batch, check_forward(family, method, batch, monkeypatch))


@pytest.mark.parametrize("rows", [ROWS, ROWS[:1], ROWS[1:2]], ids=["batch", "last", "alone"])
@pytest.mark.parametrize("name", [name for name, method in SETTINGS.items() if refused(method)])
def test_methods_that_need_a_question_say_so(name, rows):
    batch = ending_in_images(FAMILIES["llava"], rows, BARE[: len(rows)])
    with (
        vlmopt.optimized(copy.deepcopy(FAMILIES["llava"].build("sdpa")), SETTINGS[name]) as model,
        pytest.raises(ValueError, match="no text behind the last visual token"),
    ):
        forward(model, batch)


@dataclasses.dataclass(frozen=True)
class Ending(Case):
    """Cuts that would drop the last token of prompts which end in an image."""

    rows: Any = (0,)
    padding_side: str = "left"

    @property
    def drops(self) -> list[tuple[int, str]]:
        last, (first, second, third) = self.last_digits, self.family.prune_layers
        every = {
            "pre": [(first, "0234567" + last)],
            "mid": [(second, "13" + last)],
            "progressive": [(first, "1" + last), (second, "135" + last), (third, "13579" + last)],
        }
        return every[self.schedule]

    @property
    def last_digits(self) -> str:
        return "".join(str((int(n) - 1 + int(n) % 3) % 10) for n in set(self.batch.total[list(self.bare)].tolist()))

    @property
    def bare(self) -> tuple[int, ...]:
        return tuple(i for i, row in enumerate(self.rows) if not isinstance(row[-1], int))

    @property
    def batch(self) -> Batch:
        return ending_in_images(self.family, self.rows, self.bare, self.padding_side)

    def removal(self, batch: Batch) -> Removal:
        held = torch.zeros_like(batch.visual)
        held[torch.arange(len(held)), last_rows(batch)] = True
        stages = [
            dataclasses.replace(stage, drop=stage.drop & ~held) for stage in super().removal(batch).stages.values()
        ]
        lost = super().removal(batch).stages[self.drops[-1][0]].drop & held
        assert bool(lost[list(self.bare)].any()), "the last row would have stayed anyway"
        return Removal(batch.real, batch.span, stages, LAYERS)


@functools.cache
def own_answers_agree(family: Family, rows: Any) -> bool:
    """Whether the unwrapped model answers the same with and without a cache."""
    batch = Ending(family, "pre", rows=rows).batch
    with_cache, without = (torch.stack(generate(family.build("sdpa"), batch, use_cache=use).logits) for use in (1, 0))
    return gap(with_cache, without) < TOLERANCE


WAYS: dict[str, dict[str, Any]] = {
    "cached": {},
    "uncached": {"use_cache": False},
    "beams": {"num_beams": 3, "do_sample": False},
    "lookup": {"prompt_lookup_num_tokens": 2},
    "assistant": {},
}


def ending(family: Family, schedule: str, positions: str, rows: Any, **more: Any) -> Any:
    if positions not in family.positions:
        positions = "keep"
    return Ending(family, schedule, positions, rows=rows, **more)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("schedule", "positions"),
    [("pre", "pospad"), ("mid", "repack"), ("progressive", "keep"), ("progressive", "pospad")],
)
@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl", "llava", "smolvlm", "gemma3"])
def test_every_way_to_generate(name, schedule, positions, way):
    single = way in ("lookup", "assistant")
    case = ending(FAMILIES[name], schedule, positions, ROWS[:1] if single else ROWS)
    batch, settings = case.batch, {"max_new_tokens": 4, **GREEDY, **LOGITS, **WAYS[way]}
    if way == "assistant":
        settings["assistant_model"] = copy.deepcopy(case.family.build("sdpa", seed=1))
    if way == "uncached" and not own_answers_agree(case.family, case.rows):
        pytest.skip("the model itself answers otherwise without a cache")
    expected = case.reference(batch).generate(batch(), **{**settings, "use_cache": True})
    with case.optimized() as model:
        out = model.generate(**batch(), **settings)
    assert torch.equal(out.sequences, expected.sequences)
    if way != "beams":
        assert gap(torch.stack(out.logits, 1), torch.stack(expected.logits, 1)) < TOLERANCE


@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("family", [pytest.param(f, id=f.name) for f in MASKABLE])
@pytest.mark.parametrize(("schedule", "positions"), [("pre", "keep"), ("progressive", "pospad"), ("mid", "repack")])
def test_padding_on_either_side(family, schedule, positions, padding_side):
    case = ending(family, schedule, positions, ROWS, padding_side=padding_side)
    batch, last = case.batch, last_rows(case.batch)
    expected = case.reference(batch).forward(batch())
    with case.optimized() as model:
        logits = forward(model, batch)
    every = torch.arange(len(last))
    assert gap(logits[every, last], expected[every, last]) < TOLERANCE


@pytest.mark.parametrize("schedule", ["pre", "progressive"])
@pytest.mark.parametrize("family", [pytest.param(f, id=f.name) for f in MASKABLE if f.videos])
def test_a_video_last(family, schedule):
    case = ending(family, schedule, "pospad", ((4, Video(0)), (3, Video(0), 5)))
    batch = case.batch
    expected = case.reference(batch).generate(batch(), max_new_tokens=3, **GREEDY, **LOGITS)
    with case.optimized() as model:
        out = model.generate(**batch(), max_new_tokens=3, **GREEDY, **LOGITS)
    assert torch.equal(out.sequences, expected.sequences)
    assert gap(torch.stack(out.logits, 1), torch.stack(expected.logits, 1)) < TOLERANCE


@pytest.mark.parametrize("family", [pytest.param(f, id=f.name) for f in HYBRID])
def test_hybrid_decoders(family):
    case = ending(family, "progressive", "pospad", ROWS)
    batch = case.batch
    removal = case.removal(batch)
    with case.optimized() as model:
        logits = forward(model, batch)
    for row, last in enumerate(last_rows(batch).tolist()):
        expected = compact_logits(family.build("sdpa"), batch(), removal, row)[0, -1]
        assert gap(logits[row, last], expected) < TOLERANCE


@pytest.mark.parametrize("second", [Random(keep_ratio=0.3, positions="pospad"), FastV(keep_tokens=1, layer=2)])
@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_behind_a_cut_before_the_tower(name, second, monkeypatch):
    """Flat images: hardly a cell is encoded, and the last is none of them."""
    family = FAMILIES[name]
    batch = ending_in_images(family, ROWS, BARE)
    batch.inputs["pixel_values"].zero_()
    report = check_forward(family, [PixelRedundancy(), second], batch, monkeypatch)
    for row, total in enumerate(batch.total.tolist()):
        assert report.samples[row]["visual_tokens_pre_llm"] < total
        assert report.samples[row]["visual_tokens_kept"] <= max(second.budget(total), 1)


in_chunks = pytest.mark.skipif(
    not hasattr(FAMILIES["llava"].model_class, "_prepare_multimodal_encoder_kwargs_for_generation"),
    reason="this release cannot prefill prompts with images in chunks",
)


@in_chunks
@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl", "llava", "smolvlm", "gemma3"])
def test_a_prompt_in_chunks(name):
    """Each chunk is cut by itself; of all that end in an image, the last alone holds its last row."""
    size, family = 16, FAMILIES[name]
    batch = ending_in_images(family, ((3, Image(1), 2, Image(2)),), (0,))
    pieces = batch.visual.split(size, 1)
    pieces = [(piece.long().cumsum(1) - 1, piece) for piece in pieces]
    last = int(pieces[-1][1].sum())
    digits = "1" + str((last - 1 + last % 3) % 10)  # the last token's own
    drop = torch.cat([piece & pattern(at, piece.sum(1)[:, None], digits) for at, piece in pieces], 1)
    assert bool(drop[0, -1])
    drop[0, -1] = False
    reference = reference_of(name).remove(Removal(batch.real, batch.span, [Stage(2, drop)], LAYERS))
    settings = {"max_new_tokens": 3, "prefill_chunk_size": size, **GREEDY, **LOGITS}
    method = DropByOrdinal(digits=digits, keep_ratio=0.8, layer=2)
    with vlmopt.optimized(copy.deepcopy(family.build("sdpa")), method) as model:
        out = model.generate(**batch(), **settings)
    expected = reference.generate(batch(), **settings)
    assert torch.equal(out.sequences, expected.sequences)
    assert gap(torch.stack(out.logits, 1), torch.stack(expected.logits, 1)) < TOLERANCE


@in_chunks
@pytest.mark.parametrize("rest", [0, 1])
@pytest.mark.parametrize("name", ["qwen2_5_vl", "llava"])
def test_a_chunk_of_one_row_shows_its_image(name, rest):
    """The last chunk, or every one: what acts on visual tokens acts as on the whole prompt."""
    family = FAMILIES[name]
    batch = ending_in_images(family, ((5, Image(0), 4, Image(1)),), (0,))
    settings = {"max_new_tokens": 3, **GREEDY, **LOGITS}
    with vlmopt.optimized(copy.deepcopy(family.build("sdpa")), ImageBoost(layers="1:")) as model:
        whole = model.generate(**batch(), **settings)
        chunks = model.generate(**batch(), prefill_chunk_size=batch.ids.shape[1] - 1 if rest else 1, **settings)
        (sample,) = vlmopt.report(model).samples
    assert gap(torch.stack(whole.logits), torch.stack(chunks.logits)) < TOLERANCE
    assert sample["visual_tokens"] == int(batch.total[0])


@pytest.mark.parametrize("method", [Random(keep_tokens=1), FastV(keep_tokens=2, layer=3, positions="pospad")])
@pytest.mark.parametrize("name", ["llava", "llava_next", "internvl", "qwen2_5_vl", "mistral3"])
def test_a_training_step_has_the_loss_of_the_reference(name, method, monkeypatch):
    """Rows whose next token is a label stay, though they are visual; what they cost beyond the budget is said."""
    family = FAMILIES[name]
    batch = family.inputs([[4, Image(0), 6], [3, Image(1), 2, Image(2), 5]])
    between = batch.visual.flip(1).cumsum(1).flip(1) > 0
    labels = batch.ids.masked_fill(~batch.real | (between & ~behind(batch.visual)), -100)
    for row in (0, 1):  # a label behind the very last visual token of each sample, whatever closes the image
        labels[row, int(batch.visual[row].nonzero()[-1, 0])] = 7
    with vlmopt.optimized(copy.deepcopy(family.build("sdpa")), method) as model:
        with recording(model, monkeypatch) as record:
            loss = model(**batch(), labels=labels).loss
        loss.backward()
        removal, skipped = record.removal(model, batch), str(vlmopt.report(model).skipped)
    given = {name: value.detach() for name, value in record.given.items() if torch.is_tensor(value)}
    record.given |= given
    expected = replayed(replay_of(family.name), record, removal, batch)
    targets = labels[:, 1:]
    assert bool(removal.kept()[:, :-1][targets != -100].all())
    wanted = torch.nn.functional.cross_entropy(expected[:, :-1].flatten(0, 1), targets.flatten(), ignore_index=-100)
    assert torch.allclose(loss, wanted, atol=TOLERANCE)
    held = ((targets != -100) & batch.visual[:, :-1]).sum(1)
    assert ("predict labels" in skipped) == bool((held > method.budget(99)).any())


def behind(visual: torch.Tensor) -> torch.Tensor:
    """Bool[B, L]: tokens whose predecessor is visual, and which are not."""
    return torch.nn.functional.pad(visual[:, :-1], (1, 0)) & ~visual


@pytest.mark.parametrize("labels", ["labels", "shift_labels"])
@pytest.mark.parametrize("shape", [(24,), (1, 5), (2, 24)])
def test_labels_of_another_shape_are_refused(labels, shape):
    family = FAMILIES["llava"]
    batch = family.inputs([[3, Image(0), 4]])
    with vlmopt.optimized(copy.deepcopy(family.build("sdpa")), Random(keep_tokens=1)) as model:
        with pytest.raises(ValueError, match=rf"{labels} must have the shape of the logits, \(1, 24\), got"):
            model(**batch(), **{labels: torch.zeros(shape, dtype=torch.long)})
        forward(model, batch)


def test_labels_of_the_logits_that_are_kept():
    """With `logits_to_keep`, labels are as short as the logits."""
    family = FAMILIES["llava"]
    batch = family.inputs([[3, Image(0), 1]])
    with vlmopt.optimized(copy.deepcopy(family.build("sdpa")), Random(keep_tokens=1, layer=2)) as model:
        labels = batch.ids.masked_fill(batch.visual, -100)
        labels[:, :-2] = -100
        expected = model(**batch(), labels=labels).loss
        for kept in (3, torch.arange(batch.ids.shape[1] - 3, batch.ids.shape[1])):
            assert torch.allclose(model(**batch(), labels=labels[:, -3:], logits_to_keep=kept).loss, expected)


@pytest.mark.parametrize("name", ["llava", "llava_next", "mistral3"])
def test_a_loss_of_ones_own_sees_every_row_before_text(name):
    """Label smoothing takes labels away from the model and reads its logits."""
    family = FAMILIES[name]
    batch = family.inputs([[4, Image(0), 6], [3, Image(1), 2, Image(2), 5]])
    before_text = batch.visual & torch.nn.functional.pad(batch.real & ~batch.visual, (0, 1))[:, 1:]
    with vlmopt.optimized(copy.deepcopy(family.build("sdpa")), Random(keep_tokens=1)) as model:
        model.train()
        logits = model(**batch()).logits
        assert bool((logits[before_text].abs().amax(-1) > 0).all())
        with torch.no_grad():
            assert bool((forward(model, batch)[before_text].abs().amax(-1) == 0).any())

"""A trained PosPad marker, for any selector: exactly the vector of the file at the end of every dropped run."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch

import tests.support.reference as oracle
import vlmopt
from tests.support.families import FAMILIES, GREEDY, Image, Video
from tests.support.mechanism import NEW_TOKENS, TOLERANCE, Case, answer, forward, gap, generate
from tests.support.reference import Removal
from tests.support.untrained import marker
from vlmopt.pruning import FastV, FocusUI

NAMES = ["qwen2_5_vl", "qwen3_vl", "llava", "internvl"]
pytestmark = pytest.mark.usefixtures("untrained_scorer")


def with_marker(methods):
    return [dataclasses.replace(m, marker="trained", marker_from="untrained") for m in methods]


@pytest.fixture
def reference_marker(monkeypatch):
    """The oracle writes the trained vector, too."""
    surrogate = oracle.marker_embedding
    monkeypatch.setattr(
        oracle, "marker_embedding", lambda h, run, kind: marker() if kind == "trained" else surrogate(h, run, kind)
    )


def removal(case, kind="trained"):
    stages = [dataclasses.replace(s, marker=kind) for s in case.removal(case.batch).stages.values()]
    return Removal(case.batch.real, case.batch.span, stages, 6)


@pytest.mark.parametrize("prompts", ["ragged", "right", "unpadded"])
@pytest.mark.parametrize("name", NAMES)
def test_the_model_reads_the_trained_vector(name, prompts, reference_marker):
    """Ragged batches, several images in a row, text alone: logits, and greedy tokens of the oracle."""
    case = Case(FAMILIES[name], "pre", "pospad", prompts)
    batch, wanted, mean = case.batch, removal(case), answer(case)
    reference = case.reference(batch).remove(wanted)
    expected = reference.forward(batch())
    with vlmopt.optimized(case.model(), vlmopt.Policy(prune=with_marker(case.policy.prune))) as model:
        logits = forward(model, batch)
        assert gap(logits[wanted.kept()], expected[wanted.kept()]) < TOLERANCE
        assert gap(logits[wanted.kept()], mean.forward[wanted.kept()]) > 100 * TOLERANCE  # not the mean
        if prompts != "right":
            out = generate(model, batch)
            assert torch.equal(out.sequences, reference.generate(batch(), max_new_tokens=NEW_TOKENS, **GREEDY))


def test_surrogates_may_follow_deeper_down(reference_marker):
    case = Case(FAMILIES["qwen3_vl"], "progressive", "pospad", "ragged")
    first, *rest = case.policy.prune
    stages = list(removal(case, "mean").stages.values())
    stages[0] = dataclasses.replace(stages[0], marker="trained")
    wanted = Removal(case.batch.real, case.batch.span, stages, 6)
    expected = case.reference(case.batch).remove(wanted).forward(case.batch())
    with vlmopt.optimized(case.model(), vlmopt.Policy(prune=[*with_marker([first]), *rest])) as model:
        assert gap(forward(model, case.batch)[wanted.kept()], expected[wanted.kept()]) < TOLERANCE


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl"])
def test_deepstack_and_decode_positions(name):
    """Nothing is added to a marker between the layers, and what is generated stands where it would without pruning."""
    family = FAMILIES[name]
    batch = family.inputs([[5, Image(0), 3, Image(1), 7], [4, Image(2), 9]])
    model, seen, added = copy.deepcopy(family.build("sdpa")), [], []
    decoder = model.model.language_model
    decoder.rotary_emb.register_forward_pre_hook(lambda module, args: seen.append(args[1].clone()))
    if name == "qwen3_vl":
        original = decoder._deepstack_process
        decoder._deepstack_process = lambda h, mask, embeds: added.append(mask) or original(h, mask, embeds)
    generate(model, batch)
    plain, seen[:] = list(seen), []
    added.clear()
    with vlmopt.optimized(model, FocusUI(keep_ratio=0.3, scorer="untrained")):
        generate(model, batch)
        report = vlmopt.report(model)
    assert [p.tolist() for p in seen[1:]] == [p.tolist() for p in plain[1:]]
    for row, sample in enumerate(report.samples):
        kept = sum(int(m.kept.sum()) for m in report.maps(row))
        markers = sum(int(m.markers.sum()) for m in report.maps(row))
        assert markers == sample["markers"] == sample["extras"]["markers"] > 0
        assert sample["visual_tokens_kept"] == kept
        assert sample["visual_tokens_pre_llm"] == kept + markers
        assert sample["layer_average"] == kept + markers
        for m in report.maps(row):  # a run ends in every image by itself, at a dropped cell
            ends = ~m.kept & torch.cat([m.kept[1:], torch.tensor([True])])
            assert torch.equal(m.markers, ends)
        for mask in added:
            assert int(mask[row].sum()) == kept


def test_frames_of_a_video():
    family = FAMILIES["qwen2_5_vl"]
    batch = family.inputs([[5, Video(1), 7]])
    with vlmopt.optimized(copy.deepcopy(family.build("sdpa")), FocusUI(keep_ratio=0.4, scorer="untrained")) as model:
        assert forward(model, batch).isfinite().all()
        assert vlmopt.report(model).samples[0]["markers"] > 0


def test_a_marker_saves_nothing_on_every_other_token():
    """Runs of one: the marker costs what the token would have; the report says so."""
    family = FAMILIES["llava"]
    batch = family.inputs([[5, Image(0), 7]])
    method = dataclasses.replace(Case(family, "pre", "pospad").policy.prune[0], digits="02468")
    with vlmopt.optimized(copy.deepcopy(family.build("sdpa")), with_marker([method])) as model:
        forward(model, batch)
        (sample,) = vlmopt.report(model).samples
    assert (sample["visual_tokens"], sample["visual_tokens_kept"], sample["markers"]) == (16, 8, 8)
    assert sample["visual_tokens_pre_llm"] == 16


def test_restore_and_a_moved_model():
    family = FAMILIES["llava"]
    model, batch = copy.deepcopy(family.build("sdpa")), family.inputs([[5, Image(0), 7]])
    dense = forward(model, batch)
    vlmopt.optimize(model, FocusUI(keep_ratio=0.3, scorer="untrained"))
    twin = copy.deepcopy(model)
    assert torch.equal(forward(twin, batch), forward(model, batch))
    half = forward(model.bfloat16(), batch)
    assert half.isfinite().all()
    assert torch.equal(forward(vlmopt.restore(twin), batch), dense)


def test_what_is_refused(untrained_scorer):
    with pytest.raises(ValueError, match="before layer 2"):
        FastV(keep_ratio=0.5, positions="pospad", marker="trained", marker_from="untrained")

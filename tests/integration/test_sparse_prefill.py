"""Sparse prefill inside real models: exact where everything is kept, dense where it has to be, and it says so."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

import vlmopt
from tests.support.families import FAMILIES, GREEDY, Image, Video
from tests.support.mechanism import IN_CHUNKS, LOGITS, NEW_TOKENS, TOLERANCE, Case, forward, gap
from tests.support.snapshot import differences, snapshot
from vlmopt.attention_fix import ImageBoost, VisualSink
from vlmopt.head_patterns import HeadPatterns
from vlmopt.kernels.patterns import AShape, DensePattern, MinP, Prefill, ProxyAttn, QBoundary, Sampled
from vlmopt.policy import Policy
from vlmopt.prefill import SparsePrefill
from vlmopt.runtime.components.sparse_prefill.layout import work
from vlmopt.search.timing import cells

EVERYTHING = MinP(tau=1e-30, tile=16, run=16)  # every visible key is within ln(1e30) of the best
SOME = AShape(sink=16, local=16, tile=16, run=16)
FULL = SparsePrefill(pattern=EVERYTHING, min_len=1, dense_layers=0, dense_text=0, max_work=100)
FEW = replace(FULL, pattern=SOME)
LONG = [[60, Image(0), 30], [50, Image(1), 60]]  # tokens that a sink and a window of one tile cannot cover
REQUIRED = [f for f in FAMILIES.values() if not f.extra]
NOT_CAUSAL = {"gemma3", "paligemma"}  # images attend to themselves in both directions


def run(model, batch, **kwargs):
    return model.generate(**batch(), **{"max_new_tokens": NEW_TOKENS, **GREEDY, **LOGITS, **kwargs})


def prompts(family, kind):
    return Case(family, "mid", "keep", kind).batch


@pytest.mark.parametrize("kind", ["one", "ragged"])
@pytest.mark.parametrize("family", [pytest.param(f, id=f.name) for f in REQUIRED])
def test_keeping_every_key_is_dense_attention(family, kind):
    batch, model = prompts(family, kind), copy.deepcopy(family.build("sdpa"))
    plain = run(model, batch)
    with vlmopt.optimized(model, Policy(prefill=FULL)):
        out = run(model, batch)
        report = vlmopt.report(model)
    assert gap(torch.stack(out.logits), torch.stack(plain.logits)) < TOLERANCE
    if family.name in NOT_CAUSAL:
        assert any("not causal" in entry["why"] for entry in report.skipped)
    else:
        assert report.prefill
        assert all(entry["patterns"] == {"min_p": 4} for entry in report.prefill)


@pytest.mark.parametrize("attn", ["eager", "sdpa"])
def test_right_padding_and_kernels(attn):
    family = FAMILIES["llava"]
    batch, model = prompts(family, "right"), copy.deepcopy(family.build(attn))
    plain = forward(model, batch)
    with vlmopt.optimized(model, Policy(prefill=FULL)):
        out = forward(model, batch)
        assert vlmopt.report(model).prefill
    assert gap(out[batch.real], plain[batch.real]) < TOLERANCE


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "qwen3_vl"])
def test_a_pattern_changes_something_and_back_ends_agree(family):
    family = FAMILIES[family]
    batch, model = family.inputs(LONG), copy.deepcopy(family.build("sdpa"))
    plain, found = run(model, batch), {}
    for backend in ("reference", "gather"):
        with vlmopt.optimized(model, Policy(prefill=replace(FEW, backend=backend))):
            found[backend] = torch.stack(run(model, batch).logits)
            report = vlmopt.report(model)
        assert {entry["backend"] for entry in report.prefill} == {backend}
        assert len(report.prefill) == 6
    assert gap(found["reference"], found["gather"]) < TOLERANCE
    assert gap(found["gather"], torch.stack(plain.logits)) > 50 * TOLERANCE


def test_text_rows_are_dense():
    """With all layers but the last dense, only visual rows can differ, and they are not the ones that predict."""
    family = FAMILIES["llava"]
    batch, model = family.inputs(LONG[:1]), copy.deepcopy(family.build("sdpa"))
    plain = forward(model, batch)
    with vlmopt.optimized(model, Policy(prefill=replace(FEW, dense_layers=5, dense_text=100))):
        out = forward(model, batch)
        report = vlmopt.report(model)
    text = ~batch.visual[0]
    assert gap(out[0, text], plain[0, text]) < TOLERANCE
    assert gap(out[0, ~text], plain[0, ~text]) > 50 * TOLERANCE
    assert report.prefill[0]["dense_rows"] == int(text.sum())


@pytest.mark.parametrize("schedule", ["pre", "mid"])
def test_pruned_prompts(schedule):
    """Patterns see the surviving tokens; with every key kept, pruning alone is left."""
    family = FAMILIES["qwen2_5_vl"]
    case = Case(family, schedule, "keep", "ragged")
    with vlmopt.optimized(copy.deepcopy(family.build("sdpa")), case.policy) as model:
        plain = run(model, case.batch)
    with vlmopt.optimized(copy.deepcopy(family.build("sdpa")), replace(case.policy, prefill=FULL)) as model:
        out = run(model, case.batch)
        assert vlmopt.report(model).prefill
    assert gap(torch.stack(out.logits), torch.stack(plain.logits)) < TOLERANCE


def test_with_corrections():
    family = FAMILIES["llava"]
    sink = VisualSink(layers="0:", dims=(3, 17), tau=1.6, min_visual_mass=0.05, min_nonsink_tokens=1)
    fixes = [sink, ImageBoost(alpha=0.5, layers="0:")]
    batch = prompts(family, "ragged")
    with vlmopt.optimized(copy.deepcopy(family.build("sdpa")), Policy(attention=fixes)) as model:
        plain = run(model, batch)
    with vlmopt.optimized(copy.deepcopy(family.build("sdpa")), Policy(attention=fixes, prefill=FULL)) as model:
        out = run(model, batch)
        report = vlmopt.report(model)
    assert gap(torch.stack(out.logits), torch.stack(plain.logits)) < TOLERANCE
    assert report.prefill[0]["dense_rows"]
    assert len(report.corrections) == 2


@IN_CHUNKS
@pytest.mark.parametrize("cut", [7, 16])
def test_chunked_prefill(cut):
    family = FAMILIES["llava"]
    batch, model = family.inputs([[5, Image(0), 9]]), copy.deepcopy(family.build("sdpa"))
    plain = run(model, batch)
    with vlmopt.optimized(model, Policy(prefill=FULL)):
        out = run(model, batch, prefill_chunk_size=cut)
    assert gap(torch.stack(out.logits), torch.stack(plain.logits)) < TOLERANCE


def test_a_static_cache_without_padding():
    family = FAMILIES["llava"]
    batch, model = prompts(family, "one"), copy.deepcopy(family.build("sdpa"))
    plain = run(model, batch)
    with vlmopt.optimized(model, Policy(prefill=FEW)):
        dynamic = run(model, batch)
        static = run(model, batch, cache_implementation="static", disable_compile=True)
        expected = dynamic if vlmopt.report(model).prefill else plain  # older releases make a mask all the same
    assert gap(torch.stack(static.logits), torch.stack(expected.logits)) < TOLERANCE


def test_recall_is_measured_on_request():
    family = FAMILIES["qwen2_5_vl"]
    batch, model = family.inputs(LONG), copy.deepcopy(family.build("sdpa"))
    found = {}
    for name, prefill in (("full", FULL), ("few", FEW)):
        with vlmopt.optimized(model, Policy(prefill=replace(prefill, recall_rows=8))):
            forward(model, batch)
            found[name] = vlmopt.report(model).prefill[0]["recall"]
    assert found["full"] == pytest.approx(1, abs=1e-4)
    assert 0.05 < found["few"] < 0.95


def test_what_stays_dense_is_reported():
    family = FAMILIES["llava"]
    batch, model = prompts(family, "one"), copy.deepcopy(family.build("sdpa"))
    plain = run(model, batch)
    with vlmopt.optimized(model, Policy(prefill=replace(FEW, min_len=10_000))):
        out = run(model, batch)
        report = vlmopt.report(model)
    assert torch.equal(torch.stack(out.logits), torch.stack(plain.logits))
    assert not report.prefill
    assert all("min_len=10000" in entry["why"] for entry in report.skipped)
    assert str(report).count("min_len") == 1, "one line for all layers"


@pytest.mark.parametrize("pattern", [SOME, MinP(tile=16, run=16), EVERYTHING])
@pytest.mark.parametrize("groups", [1, 2, 7])
def test_work_counts_every_head_that_shares_a_table(pattern, groups):
    q, k = torch.randn(1, 2 * groups, 320, 16), torch.randn(1, 2, 320, 16)
    given = Prefill(q, k, k, 0.25, heads=torch.arange(2 * groups))
    launches = pattern.build(given)
    every = 2 * groups * 320 * 321 / 2
    assert float(work(launches, q, k).mean()) == pytest.approx(float(cells(given, launches).sum()) / every, rel=1e-5)


def test_too_much_work_is_left_to_the_dense_kernel():
    family = FAMILIES["llava"]
    batch, model = prompts(family, "one"), copy.deepcopy(family.build("sdpa"))
    plain = run(model, batch)
    with vlmopt.optimized(model, Policy(prefill=replace(FULL, max_work=0.5))):
        out = run(model, batch)
        report = vlmopt.report(model)
    assert torch.equal(torch.stack(out.logits), torch.stack(plain.logits))
    assert not report.prefill
    assert all("max_work=0.5" in entry["why"] for entry in report.skipped)


def test_the_report_counts_the_heads_that_stay_dense():
    family = FAMILIES["llava"]
    batch, everywhere = family.inputs(LONG), {"min_len": 1, "dense_layers": 0, "dense_text": 0, "max_work": 10}
    for pattern, dense in ((Sampled(recall=0.9999, tile=16, run=16), 4), (AShape(sink=0, local=1, tile=16, run=16), 0)):
        with vlmopt.optimized(
            copy.deepcopy(family.build("sdpa")), Policy(prefill=SparsePrefill(pattern=pattern, **everywhere))
        ) as model:
            forward(model, batch)
            report = vlmopt.report(model)
        assert [entry["dense_heads"] for entry in report.prefill] == [dense] * 6
        assert ("; 24 of 24 heads dense" in str(report)) == bool(dense)


def test_frame_and_row_strides_reach_the_patterns(monkeypatch):
    family, seen = FAMILIES["qwen2_5_vl"], []
    build = MinP.build

    def spy(self, prefill):
        seen.append((prefill.frame, prefill.row, int(prefill.modality.sum())))
        return build(self, prefill)

    monkeypatch.setattr(MinP, "build", spy)
    batch = family.inputs([[5, Video(0), 7]])
    with vlmopt.optimized(copy.deepcopy(family.build("sdpa")), Policy(prefill=FULL)) as model:
        forward(model, batch)
    grid = batch.inputs["video_grid_thw"][0]
    t, h, w = int(grid[0]), int(grid[1]) // 2, int(grid[2]) // 2
    assert seen[0] == (h * w if t > 1 else None, w if h > 1 else None, t * h * w)


@pytest.mark.parametrize(("policy", "error", "match"), [
    ({"prefill": {"method": "random", "keep_ratio": 0.5}}, TypeError, "pattern"),
    ({"prefill": {"method": "min_p", "tau": 2}}, ValueError, "tau"),
    ({"prefill": {"pattern": {"method": "min_p"}, "min_lem": 3}}, ValueError, "min_len"),
    ({"prefill": {"pattern": {"method": "min_p"}, "min_len": 0}}, ValueError, "min_len"),
    ({"prefill": {"pattern": {"method": "min_p"}, "backend": "cuda"}}, ValueError, "backend"),
    ({"prefill": {"dense_layers": 6}}, ValueError, "dense_layers"),
    ([MinP(), AShape()], ValueError, "one pattern"),
], ids=str)  # fmt: skip
def test_refusals(policy, error, match):
    with pytest.raises(error, match=match):
        vlmopt.optimize(copy.deepcopy(FAMILIES["llava"].build("sdpa")), policy)


BY_HEAD = HeadPatterns(
    {"model_type": "llava", "hidden_size": 64, "layers": 6, "num_heads": 4, "num_kv_heads": 2, "head_dim": 16},
    (SOME, MinP()),
    (None, None, (0, 0, 1, 0), (0, 0, 0, 0), None, None),
)


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what a CPU cannot do")
@pytest.mark.parametrize(("prefill", "match"), [
    (SparsePrefill(backend="fa4"), "fa4 needs a GPU of the Hopper generation"),
    (SparsePrefill(pattern=MinP(), backend="flex"), "not col_idx; use backend='gather'"),
    (replace(FEW, backend="flex", recall_rows=8), "flex returns no log-sum-exp on CPU"),
    (replace(FEW, backend="flex", pattern=QBoundary(text=SOME, vision=SOME)), "flex knows blocks of keys"),
    (SparsePrefill(heads=BY_HEAD, backend="flex"), "not heads"),
], ids=["fa4", "columns", "recall", "rows of each modality", "by head"])  # fmt: skip
def test_a_back_end_that_cannot_is_refused_before_anything_changes(prefill, match):
    model = copy.deepcopy(FAMILIES["llava"].build("sdpa"))
    before = snapshot(model)
    with pytest.raises(ValueError, match=match):
        vlmopt.optimize(model, Policy(prefill=prefill))
    assert differences(before, snapshot(model)) == []


@pytest.mark.parametrize("prefill", [
    SparsePrefill(pattern=ProxyAttn(groups=3)),
    SparsePrefill(pattern=ProxyAttn(groups=3), backend="gather"),
    SparsePrefill(heads=replace(BY_HEAD, patterns=(SOME, ProxyAttn(groups=3)))),
], ids=["all heads", "a back-end", "by head"])  # fmt: skip
def test_a_pattern_that_does_not_fit_the_heads_is_refused_before_anything_changes(prefill):
    model = copy.deepcopy(FAMILIES["llava"].build("sdpa"))
    before = snapshot(model)
    with pytest.raises(ValueError, match="proxy_attn: groups must divide the 2 key heads, got 3"):
        vlmopt.optimize(model, Policy(prefill=prefill))
    assert differences(before, snapshot(model)) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what a CPU cannot do")
def test_triton_is_refused_on_a_cpu():
    pytest.importorskip("triton")
    with pytest.raises(ValueError, match="prefill: triton needs CUDA tensors, got cpu; use backend='gather'"):
        vlmopt.optimize(copy.deepcopy(FAMILIES["llava"].build("sdpa")), Policy(prefill=SparsePrefill(backend="triton")))


def test_a_back_end_is_told_the_type_of_the_weights():
    model = copy.deepcopy(FAMILIES["llava"].build("sdpa")).half()
    with pytest.raises(ValueError, match=r"native computes float32 and bfloat16, .* got torch\.float16"):
        vlmopt.optimize(model, Policy(prefill=SparsePrefill(backend="native")))


def test_a_back_end_that_can_is_taken():
    """Whole blocks are what flex computes, on a CPU too."""
    with vlmopt.optimized(copy.deepcopy(FAMILIES["llava"].build("sdpa")), Policy(prefill=replace(FEW, backend="flex"))):
        pass


@pytest.mark.skipif("qwen3_5" not in FAMILIES, reason="this release has no hybrid decoder")
def test_layers_without_attention_are_named():
    family = FAMILIES["qwen3_5"]
    with vlmopt.optimized(copy.deepcopy(family.build("sdpa")), Policy(prefill=FEW)) as model:
        forward(model, family.inputs(LONG))
        report = vlmopt.report(model)
    assert [entry["layer"] for entry in report.prefill] == [1, 3, 5]
    assert report.skipped_lines() == ["skipped  sparse prefill in layers 0, 2, 4: the layer has no attention"]


def test_a_model_without_a_layer_that_could_be_sparse_is_refused():
    model = copy.deepcopy(FAMILIES["llava"].build("sdpa"))
    for layer in model.model.language_model.layers:
        layer.self_attn.sinks = torch.zeros(4)
    with pytest.raises(ValueError, match="from layer 2 on can be sparse: its softmax has learned sink logits"):
        vlmopt.optimize(model, Policy(prefill=SparsePrefill()))


@pytest.mark.parametrize("prefill", [
    SparsePrefill(pattern=DensePattern()),
    SparsePrefill(heads=replace(BY_HEAD, layers=(None,) * 6)),
    SparsePrefill(heads=BY_HEAD, dense_layers=4),
], ids=["every key", "no layer", "dense layers"])  # fmt: skip
def test_patterns_that_keep_everything_say_so(prefill):
    family = FAMILIES["llava"]
    with vlmopt.optimized(copy.deepcopy(family.build("sdpa")), Policy(prefill=prefill)) as model:
        forward(model, family.inputs(LONG))
        assert vlmopt.report(model).skipped_lines() == [
            "skipped  sparse prefill: changes nothing: its patterns keep every key"
        ]


def test_json_round_trip():
    policy = Policy(prefill=SparsePrefill(pattern=MinP(tau=0.5), min_len=100, backend="gather"))
    assert Policy.load(policy.to_dict()) == policy
    assert Policy(prefill=MinP()) == Policy(prefill={"method": "min_p"}) == Policy.load(MinP())

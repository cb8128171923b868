"""Models without a language head: hidden states have the length of the prompt, and reports say which rows are left."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

import vlmopt
from tests.support.families import FAMILIES, MASKABLE, Family, Image
from tests.support.mechanism import TOLERANCE, Case, DropByOrdinal, gap
from tests.support.reference import Reference
from tests.support.snapshot import differences, snapshot
from vlmopt.pruning import DivPrune, VisionZip

BARE = [pytest.param(f, id=f.name) for f in MASKABLE if hasattr(f.build(), "model")]


def hidden(model: Any, inputs: dict[str, Any]) -> Tensor:
    with torch.no_grad():
        out: Tensor = model(**inputs).last_hidden_state
    return out


@pytest.mark.parametrize("schedule", ["pre", "progressive"])
@pytest.mark.parametrize("family", BARE)
def test_rows_that_are_left_equal_the_masked_reference(family: Family, schedule: str) -> None:
    case = Case(family, schedule, "keep", "ragged")
    batch = case.batch
    removal = case.removal(batch)
    reference = Reference(family.build("eager")).remove(removal)
    expected = hidden(reference.model.model, {"past_key_values": transformers.DynamicCache(), **batch()})
    with vlmopt.optimized(case.model().model, case.policy) as model:
        out, report = hidden(model, batch()), vlmopt.report(model)
    kept = removal.kept()
    assert out.shape == expected.shape
    assert gap(out[kept], expected[kept]) < TOLERANCE
    assert torch.equal(report.rows(), kept)
    assert bool((out[~kept & batch.real] == 0).all())
    assert [sample["visual_tokens"] for sample in report.samples] == batch.total.tolist()


def test_nothing_is_left_behind_and_pickles_stay_optimized() -> None:
    family = FAMILIES["qwen2_5_vl"]
    whole = copy.deepcopy(family.build())
    model, batch = whole.model, family.inputs([[5, Image(0), 7]])
    dense, before = hidden(model, batch()), snapshot(whole)
    vlmopt.optimize(model, DivPrune(keep_ratio=0.3))
    pruned = hidden(model, batch())
    assert torch.equal(hidden(pickle.loads(pickle.dumps(model)), batch()), pruned)
    with torch.no_grad():  # through the model around it
        logits = whole(**batch()).logits
    assert gap(logits, whole.lm_head(pruned)) < TOLERANCE
    vlmopt.restore(whole)
    assert differences(before, snapshot(whole)) == []
    assert torch.equal(hidden(model, batch()), dense)


def test_rows_of_a_prompt_without_cuts() -> None:
    family = FAMILIES["llava"]
    batch = family.inputs([[5, Image(0), 7], [9]])
    with vlmopt.optimized(copy.deepcopy(family.build()), "dense") as model:
        model.generate(**batch(), max_new_tokens=3)
        assert torch.equal(vlmopt.report(model).rows(), batch.real)


def test_a_lora_model_without_a_head() -> None:
    peft = pytest.importorskip("peft")
    family = FAMILIES["qwen2_5_vl"]
    batch = family.inputs([[5, Image(0), 7]])
    config = peft.LoraConfig(target_modules=["q_proj"], r=2, init_lora_weights=False)
    model = peft.PeftModel(copy.deepcopy(family.build()).model, config).eval()
    with vlmopt.optimized(model, DropByOrdinal(digits="147", keep_ratio=0.7)):
        out = hidden(model, batch())
        left = vlmopt.report(model).rows()
    assert bool((out[~left] == 0).all())
    assert 0 < int((~left).sum()) < int(batch.total)


def late_interaction(query: Tensor, page: Tensor) -> Tensor:
    return (query @ page.transpose(-1, -2)).amax(-1).sum(-1)


def colpali() -> Any:
    vlm = FAMILIES["paligemma"].config()
    return transformers.ColPaliForRetrieval(transformers.ColPaliConfig(vlm_config=vlm, embedding_dim=16))


def colqwen2() -> Any:
    vlm = FAMILIES["qwen2_vl"].config()
    return transformers.ColQwen2ForRetrieval(transformers.ColQwen2Config(vlm_config=vlm, embedding_dim=16))


def inputs_of(name: str) -> tuple[dict[str, Tensor], Tensor]:
    family = FAMILIES["paligemma" if name == "colpali" else "qwen2_vl"]
    batch = family.inputs([[5, Image(0), 7], [4, Image(1), 6]])
    given = batch()
    if name == "colqwen2":  # one image a row, padded
        lengths = given["image_grid_thw"].prod(1).tolist()
        given["pixel_values"] = nn.utils.rnn.pad_sequence(given["pixel_values"].split(lengths), batch_first=True)
        given.pop("mm_token_type_ids", None)
    given.pop("token_type_ids", None)
    return given, batch.real


@pytest.mark.parametrize(("name", "build"), [("colpali", colpali), ("colqwen2", colqwen2)])
def test_late_interaction(name: str, build: Any) -> None:
    """Dropped rows embed as zeros, so that the score is that over the rows that are left."""
    torch.manual_seed(0)
    model = build().eval()
    nn.init.normal_(model.embedding_proj_layer.bias)
    given, real = inputs_of(name)
    with torch.no_grad():
        dense = model(**given).embeddings
        assert vlmopt.optimize(model, DivPrune(keep_ratio=0.4)) is model
        pruned, report = model(**given).embeddings, vlmopt.report(model)
    left = report.rows()
    assert pruned.shape == dense.shape
    assert pruned.isfinite().all()
    assert [s["visual_tokens_kept"] / s["visual_tokens"] for s in report.samples] == pytest.approx([0.4, 0.4], abs=0.04)
    assert bool((pruned[~left] == 0).all())
    assert bool((pruned[left].norm(dim=-1) - 1).abs().max() < 1e-5)
    assert int((real & ~left).sum()) == sum(s["visual_tokens"] - s["visual_tokens_kept"] for s in report.samples)
    for page, rows in zip(pruned, left, strict=True):
        query = page[rows][:3] + 0.1
        assert gap(late_interaction(query, page), late_interaction(query, page[rows])) < TOLERANCE
    with torch.no_grad():
        assert torch.equal(vlmopt.restore(model)(**given).embeddings, dense)


def test_rows_are_those_of_the_call_whatever_else_has_run() -> None:
    """Another thread may use the model between its decoder and its embeddings; here a hook does."""
    torch.manual_seed(0)
    model = vlmopt.optimize(colqwen2().eval(), DivPrune(keep_ratio=0.4))
    given, _ = inputs_of("colqwen2")
    ids = FAMILIES["qwen2_vl"].inputs([[7]])()
    with torch.no_grad():
        expected = model(**given).embeddings
        text = {name: ids[name] for name in ("input_ids", "attention_mask")}
        hook = model.embedding_proj_layer.register_forward_pre_hook(lambda module, args: (model.vlm(**text), None)[1])
        assert torch.equal(model(**given).embeddings, expected)
        hook.remove()


def test_a_query_has_nothing_to_drop() -> None:
    torch.manual_seed(0)
    model = colqwen2().eval()
    ids = FAMILIES["qwen2_vl"].inputs([[7]])()
    given = {name: ids[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        dense = model(**given).embeddings
        with vlmopt.optimized(model, DivPrune(keep_ratio=0.4)):
            assert torch.equal(model(**given).embeddings, dense)


def test_methods_that_need_the_tower_work_on_a_bare_model() -> None:
    family = FAMILIES["llava"]
    batch = family.inputs([[5, Image(0), 7]])
    with vlmopt.optimized(copy.deepcopy(family.build()).model, VisionZip(keep_ratio=0.5, tower_layer=-1)) as model:
        hidden(model, batch())
        assert vlmopt.report(model).samples[0]["visual_tokens_kept"] == 8

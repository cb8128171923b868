"""What is relied on of vLLM's own, private names among it; a release that differs fails here first. No engine."""

from __future__ import annotations

import inspect
from importlib import import_module
from types import SimpleNamespace

import pytest
import torch
from vllm.model_executor.models.registry import ModelRegistry
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.cache import BaseMultiModalProcessorCache
from vllm.multimodal.encoder_budget import MultiModalBudget
from vllm.multimodal.processing import BaseMultiModalProcessor, BaseProcessingInfo, InputProcessingContext
from vllm.v1.worker.cpu_model_runner import CPUModelRunner
from vllm.v1.worker.gpu_model_runner import GPUModelRunner

from vlmopt_vllm import TESTED, models, register
from vlmopt_vllm.batches import batches, joined, split
from vlmopt_vllm.factories import Unasked, mixed
from vlmopt_vllm.families import ARCHITECTURES
from vlmopt_vllm.plans import Plan
from vlmopt_vllm.policies import AtStart
from vlmopt_vllm.runner import let_cpu_runner_ask

from .engines import configured

SIGNATURES = {
    (BaseMultiModalProcessor, "apply"): ["inputs", "timing_ctx"],
    (BaseMultiModalProcessor, "_apply_hf_processor_main"): ["mm_items", "hf_kwargs"],
    (BaseMultiModalProcessor, "_get_mm_fields_config"): ["hf_inputs", "hf_processor_mm_kwargs"],
    (BaseMultiModalProcessor, "_get_mm_hashes"): ["inputs"],
    (BaseMultiModalProcessor, "_get_mm_prompt_updates"): ["mm_items", "hf_processor_mm_kwargs", "out_mm_kwargs"],
    (BaseMultiModalProcessor, "_maybe_apply_prompt_updates"): ["mm_items", "mm_res"],
    (BaseMultiModalProcessorCache, "invalidate"): ["mm_hash"],
    (BaseProcessingInfo, "get_mm_max_tokens_per_item"): ["seq_len", "mm_counts"],
    (InputProcessingContext, "get_merged_mm_kwargs"): ["kwargs", "supported_mm_processor_kwargs"],
    (CPUModelRunner, "load_model"): ["load_dummy_weights"],
}


@pytest.mark.parametrize(("owner", "name"), SIGNATURES)
def test_what_is_overridden_takes_what_it_took(owner, name):
    assert list(inspect.signature(getattr(owner, name)).parameters)[1:] == SIGNATURES[owner, name]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_is_served_by_a_class_made_of_vllms_own(architecture):
    module, name = ARCHITECTURES[architecture]
    base, made = getattr(import_module(f"vllm.model_executor.models.{module}"), name), getattr(models, architecture)
    assert made.__mro__[1:3] == (models.Pruned, base)  # nothing stands between, whose methods would be called instead
    flag = "supports_multimodal_pruning"
    assert getattr(made, flag, False) == getattr(base, flag, False)  # engines without the key ask for it, too
    assert made._processor_factory.dummy_inputs is base._processor_factory.dummy_inputs
    tower = getattr(import_module(f"vllm.model_executor.models.{module}"), name).__init__
    assert list(inspect.signature(tower).parameters)[1:] == ["vllm_config", "prefix"]


def test_the_runner_hands_over_what_positions_are_made_of():
    source = inspect.getsource(GPUModelRunner._gather_mm_embeddings)
    for name in ("input_ids", "multimodal_embeddings", "mrope_positions", "num_computed_tokens"):
        assert f"{name}=" in source


@pytest.mark.parametrize(("options", "reason"), [
    ({"pipeline_parallel_size": 2}, "only the first rank learns the positions"),
    ({"enable_lora": True, "enable_tower_connector_lora": True}, "leave --enable-tower-connector-lora out"),
    ({"video_pruning_rate": 0.5}, "--video-pruning-rate cannot be used together"),
    ({"compilation_config": {"compile_mm_encoder": True}}, "leave compile_mm_encoder out"),
])  # fmt: skip
def test_engines_that_would_give_wrong_answers_do_not_start(checkpoints, options, reason):
    config = configured(checkpoints("tiny_qwen"), mm_processor_kwargs={"vlmopt": None}, **options)
    with pytest.raises(ValueError, match=reason):
        models.Qwen2_5_VLForConditionalGeneration(vllm_config=config)


@pytest.mark.parametrize("name", ["tiny_llava", "llava_onevision", "internvl", "qwen2_5_vl"])
def test_engines_have_room_for_whole_items_whatever_their_own_policy_leaves(checkpoints, name):
    def room(**kwargs: object) -> dict[str, int]:
        return MultiModalBudget(configured(checkpoints(name), **kwargs), MULTIMODAL_REGISTRY).mm_max_toks_per_item

    positions = "keep" if name == "qwen2_5_vl" else "repack"
    few = {"method": "uniform", "keep_tokens": 1, "positions": positions}
    assert room(mm_processor_kwargs={"vlmopt": few}) == room()


def test_registering_twice_changes_nothing_more():
    register()
    once = CPUModelRunner.load_model
    register()
    let_cpu_runner_ask()
    assert CPUModelRunner.load_model is once
    assert set(ARCHITECTURES) <= set(ModelRegistry.get_supported_archs())


def test_an_untested_release_is_refused_in_one_line(monkeypatch):
    import vllm

    monkeypatch.setattr(vllm, "__version__", "0.99.1")
    with pytest.raises(RuntimeError, match=rf"works with vLLM {TESTED[0]}; this is 0.99.1"):
        register()


def test_an_engine_without_the_key_refuses_requests_with_it():
    class Plain:
        def apply(self, inputs: SimpleNamespace) -> str:
            return "as ever"

    processor = mixed(Unasked, Plain)()
    assert processor.apply(SimpleNamespace(hf_processor_mm_kwargs={"min_pixels": 4})) == "as ever"
    with pytest.raises(ValueError, match="started without the key"):
        processor.apply(SimpleNamespace(hf_processor_mm_kwargs={"vlmopt": None}))


def plan(total: int, method: str | None = None, **facts: object) -> Plan:
    policy = None if method is None else AtStart.of({"method": method, "keep_ratio": 0.5, **facts}).policy
    keep = torch.arange(total) if policy is None else torch.empty(0, dtype=torch.long)
    return Plan(policy, total, total, keep=keep, flat={"pixel_values": 2 * total})


def test_no_more_is_encoded_at_once_than_was_profiled():
    sizes = [plan(n) for n in (60, 30, 20, 100, 5)]
    assert batches(sizes, 100) == [[0, 1], [2], [3], [4]]
    assert batches([plan(500), plan(1)], 100) == [[0], [1]]  # one item has to be encoded


def test_items_whose_tower_is_listened_to_are_encoded_alone():
    items = [plan(4), plan(4, "vision_zip"), plan(4), plan(4), plan(4, "div_prune")]
    assert batches(items, 100) == [[0], [1], [2, 3, 4]]


def test_parts_of_a_batch_are_what_vllm_would_have_sent():
    plans = [plan(2), plan(3)]
    kwargs = {"pixel_values": torch.arange(20.0).view(10, 2), "image_grid_thw": torch.tensor([[1, 2, 2], [1, 2, 3]]),
              "image_token_id": torch.tensor(6)}  # fmt: skip
    items = split(kwargs, plans)
    assert [len(item["pixel_values"]) for item in items] == [4, 6]
    whole = joined(items, kwargs, plans[0].flat)
    assert all(torch.equal(whole[name], kwargs[name]) for name in kwargs)
    second = joined(items[1:], kwargs, plans[0].flat)
    assert torch.equal(second["pixel_values"], kwargs["pixel_values"][4:])
    assert second["image_grid_thw"].tolist() == [[1, 2, 3]]


@pytest.mark.parametrize("columns", [3, 6])
def test_a_plan_travels_unchanged(columns):
    sent = plan(columns, "uniform")
    found = Plan.of(sent.fields())
    assert (found.policy, found.item_total, found.count, found.flat) == (
        sent.policy, sent.item_total, sent.count, sent.flat
    )  # fmt: skip
    assert torch.equal(found.keep, sent.keep)

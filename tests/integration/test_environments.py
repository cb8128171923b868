"""Other caches, dtypes, hooks and compilers around an optimized model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import StoppingCriteria

import vlmopt
from tests.support.families import FAMILIES
from tests.support.mechanism import Case, answer, forward, gap, generate
from tests.support.snapshot import differences, snapshot

NAMES = ["qwen2_5_vl", "qwen3_vl", "llava"]
names = pytest.mark.parametrize("name", NAMES)


@pytest.mark.usefixtures("quanto")
@names
def test_quantized_cache(name):
    case = Case(FAMILIES[name], "progressive", "keep", "ragged")
    config = {"backend": "quanto", "nbits": 4, "q_group_size": 16, "residual_length": 64}
    settings = {"cache_implementation": "quantized", "cache_config": config}
    with case.optimized() as model:
        out = generate(model, case.batch, **settings)
        assert vlmopt.report(model).key_lengths == answer(case).lengths
    assert gap(out.logits[0], answer(case).logits[:, 0]) < 1e-4  # the prompt is quantised after its own prefill
    assert torch.cosine_similarity(out.logits[1], answer(case).logits[:, 1]).min() > 0.9  # four bits


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@names
def test_half_precision_runs_in_its_own_dtype(name, dtype):
    case = Case(FAMILIES[name], "progressive", "pospad", "ragged")
    expected = answer(case)
    with vlmopt.optimized(case.model().to(dtype), case.policy) as model:
        batch = case.batch
        inputs = {k: v.to(dtype) if v.is_floating_point() else v for k, v in batch().items()}
        with torch.no_grad():
            logits = model(**inputs).logits
        assert logits.dtype == dtype
        assert gap(logits[expected.kept].float(), expected.forward[expected.kept]) < 0.3  # of a spread of 5
        out = model.generate(**inputs, max_new_tokens=3, do_sample=False)
        assert vlmopt.report(model).dtype == str(dtype).removeprefix("torch.")
    assert out.shape[1] == batch.ids.shape[1] + 3


@pytest.mark.parametrize("first", ["accelerate", "vlmopt"])
@pytest.mark.parametrize("name", ["qwen2_5_vl", "llava", "internvl"])
def test_accelerate_hooks_in_either_order(name, first):
    """Weights that travel to the device of the moment: accelerate replaces `forward`, our hooks run around it."""
    from accelerate import cpu_offload
    from accelerate.hooks import remove_hook_from_submodules

    case = Case(FAMILIES[name], "progressive", "keep", "ragged")
    model, expected = case.model(), answer(case)
    if first == "accelerate":
        cpu_offload(model, execution_device="cpu")
        forward(model, case.batch)  # some towers get hooks of transformers in their first call
        before = snapshot(model)
        vlmopt.optimize(model, case.policy)
    else:
        vlmopt.optimize(model, case.policy)
        cpu_offload(model, execution_device="cpu")
    out = generate(model, case.batch)
    assert torch.equal(out.sequences, expected.sequences)
    assert gap(torch.stack(out.logits, 1), expected.logits) < 1e-4
    vlmopt.restore(model)
    if first == "accelerate":
        left = differences(before, snapshot(model))
        assert [line for line in left if "_parameters" not in line] == []  # those are accelerate's: weights come and go
    remove_hook_from_submodules(model)
    assert gap(forward(model, case.batch), forward(case.family.build(), case.batch)) == 0


@pytest.mark.slow
def test_compiled_forward_gives_right_results():
    """Hooks break the graph; the answer stays right."""
    case = Case(FAMILIES["llava"], "pre")
    expected = answer(case)
    with case.optimized() as model:
        compiled = torch.compile(model, backend="eager")
        with torch.no_grad():
            logits = compiled(**case.batch()).logits
        assert gap(logits[expected.kept], expected.forward[expected.kept]) < 1e-4
    torch._dynamo.reset()


class StopAfterTwo(StoppingCriteria):
    def __call__(self, ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        self.seen = getattr(self, "seen", 0) + 1
        return torch.full((len(ids),), self.seen >= 2)


def test_an_answer_that_stops_early_is_counted_right():
    case = Case(FAMILIES["llava"], "mid")
    with case.optimized() as model:
        generate(model, case.batch, stopping_criteria=[StopAfterTwo()], max_new_tokens=9)
        assert vlmopt.report(model).new_tokens == 2


def test_tuple_outputs_and_hidden_states():
    """`return_dict=False` works; hidden states have the true, shrinking lengths, the logits the prompt's."""
    case = Case(FAMILIES["llava"], "mid", "keep", "ragged")
    batch, expected = case.batch, answer(case)
    with case.optimized() as model, torch.no_grad():
        logits = model(**batch(), return_dict=False)[0]
        assert gap(logits[expected.kept], expected.forward[expected.kept]) < 1e-4
        states = model(**batch(), output_hidden_states=True).hidden_states
    assert [h.shape[1] for h in states][1:-1] == expected.lengths[:-1]  # behind the embeddings: outputs of each layer


class Wrapper(torch.nn.Module):
    """What adapters such as PEFT's do: `generate` goes to the inner model, the wrapper's own forward never runs."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.config = inner, inner.config

    def generate(self, *args, **kwargs):
        return self.inner.generate(*args, **kwargs)


def test_a_wrapper_around_the_model_is_looked_through():
    case = Case(FAMILIES["qwen2_5_vl"], "progressive", prompts="ragged")
    with case.optimized() as model:
        expected = generate(model, case.batch).sequences
    with vlmopt.optimized(Wrapper(case.model()), case.policy) as wrapped:
        assert torch.equal(generate(wrapped, case.batch).sequences, expected)
        report = vlmopt.report(wrapped)
    assert report.ms["ttft"] is not None
    assert report.ms["decode"] is not None


def test_assisted_decoding_with_an_optimized_assistant():
    case = Case(FAMILIES["qwen2_5_vl"], "pre")
    with case.optimized() as model, Case(case.family, "mid").optimized() as assistant:
        expected = generate(model, case.batch).sequences
        out = generate(model, case.batch, assistant_model=assistant, return_dict_in_generate=False)
        assert torch.equal(out, expected)

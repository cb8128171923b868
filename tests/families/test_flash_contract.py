"""FlashAttention without a GPU: a stand-in that asserts what the real kernel relies on.

The real one takes `None` or a 2-D key mask, aligns causality at the bottom right, reads gapped `position_ids` as packed
sequences, and looks up its own name in `module.config`.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import AttentionInterface

import vlmopt
from tests.support.families import FAMILIES
from tests.support.mechanism import NEW_TOKENS, TOLERANCE, Case, answer, forward, gap, generate
from tests.support.reference import decoder_of
from vlmopt import pruning

NAME = "flash_stand_in"
CALLS: list[tuple[int, int, int, bool]] = []  # (layer, queries, keys, whether positions are free of gaps)
FAMILY_NAMES = ["qwen2_5_vl", "qwen3_vl", "llava", "internvl", "smolvlm"]


def flash_stand_in(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    q, kv = query.shape[2], key.shape[2]
    assert module.config._attn_implementation == NAME, "the kernel must see its own name"
    assert attention_mask is None or attention_mask.shape == (query.shape[0], kv), "2-D mask over this layer's keys"
    positions = kwargs.get("position_ids")
    CALLS.append((module.layer_idx, q, kv, positions is None or bool((positions.diff() == 1).all())))
    seen = torch.arange(kv) <= torch.arange(q)[:, None] + kv - q
    seen = seen[None, None] if attention_mask is None else seen & attention_mask[:, None, None].bool()
    key, value = (t.repeat_interleave(query.shape[1] // key.shape[1], 1) for t in (key, value))
    scores = (query @ key.transpose(-1, -2)).float() * (scaling or query.shape[-1] ** -0.5)
    weights = scores.masked_fill(~seen, torch.finfo(torch.float32).min).softmax(-1).to(value.dtype)
    return (weights @ value).transpose(1, 2).contiguous(), None


def with_flash(model: Any) -> Any:
    """A copy whose decoder, and only it, runs on the stand-in."""
    AttentionInterface.register(NAME, flash_stand_in)
    AttentionMaskInterface.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["flash_attention_2"])
    model = copy.deepcopy(model)
    decoder = decoder_of(model)
    attentions = [m for layer in decoder.layers for m in layer.children() if hasattr(m, "layer_idx")]
    for config in [model.config, model.config.get_text_config(), decoder.config, *(m.config for m in attentions)]:
        config._attn_implementation_internal = NAME
    return model


@pytest.fixture(autouse=True)
def _no_old_calls() -> None:
    CALLS.clear()


@pytest.mark.parametrize("prompts", ["one", "ragged", "unpadded"])
@pytest.mark.parametrize("positions", ["keep", "pospad"])
@pytest.mark.parametrize("schedule", ["pre", "mid", "progressive"])
@pytest.mark.parametrize("name", FAMILY_NAMES)
def test_contract_and_answers(name, schedule, positions, prompts):
    case = Case(FAMILIES[name], schedule, positions, prompts)
    batch, expected = case.batch, answer(case)
    with vlmopt.optimized(with_flash(case.family.build()), case.policy) as model:
        assert gap(forward(model, batch)[expected.kept], expected.forward[expected.kept]) < TOLERANCE
        CALLS.clear()
        out = generate(model, batch)
        assert torch.equal(out.sequences, expected.sequences)
        assert gap(torch.stack(out.logits, 1), expected.logits) < TOLERANCE
        assert vlmopt.report(model).attn_implementation == NAME
    prefill = {layer: (kv, whole) for layer, q, kv, whole in CALLS if q > 1}
    assert [prefill[i][0] for i in range(6)] == expected.lengths
    assert all(prefill[i][1] for i in range(case.drops[0][0], 6)), "gapped positions would be read as packed sequences"
    assert [kv for layer, _, kv, _ in CALLS if layer == 5][-1] == expected.lengths[5] + NEW_TOKENS - 1


@pytest.mark.parametrize("prompts", ["one", "ragged"])
@pytest.mark.parametrize("name", FAMILY_NAMES)
def test_row_probe_under_flash(name, prompts):
    """The probed layer still delegates to the flash kernel under its own name, and selects what sdpa selects."""
    case, policy = Case(FAMILIES[name], "mid", prompts=prompts), [pruning.FastV(keep_ratio=0.4, layer=2)]
    with vlmopt.optimized(with_flash(case.family.build()), policy) as model:
        flash = generate(model, case.batch)
    with vlmopt.optimized(case.model("sdpa"), policy) as model:
        sdpa = generate(model, case.batch)
    assert torch.equal(flash.sequences, sdpa.sequences)
    assert gap(torch.stack(flash.logits, 1), torch.stack(sdpa.logits, 1)) < TOLERANCE

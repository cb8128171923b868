"""LoRA fine-tuning of a pruned model: the loss and the gradients of every adapter are those of the masked reference."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from torch.nn.functional import pad

import vlmopt
from tests.support.families import FAMILIES, LAYERS, Batch, Family, Image
from tests.support.mechanism import DropByOrdinal, pattern
from tests.support.reference import Reference, Removal, Stage

peft = pytest.importorskip("peft", reason="peft is not installed")

ROWS = [[5, Image(0), 7], [3, Image(1), 6]]


def adapted(model: Any) -> Any:
    places = r".*language_model.*\.(q_proj|v_proj|down_proj)"
    config = peft.LoraConfig(target_modules=places, r=2, init_lora_weights=False)
    torch.manual_seed(0)
    return peft.get_peft_model(model, config)


def examples(family: Family) -> tuple[Batch, Tensor]:
    """Every text token behind the first image is a label."""
    batch = family.inputs(ROWS)
    behind = (batch.visual.long().cumsum(1) > 0) & batch.real & ~batch.visual
    return batch, batch.ids.masked_fill(~behind, -100)


def gradients(model: Any) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "qwen3_vl", "internvl"])
def test_gradients_are_those_of_the_masked_reference(name: str, layer: int) -> None:
    family = FAMILIES[name]
    batch, labels = examples(family)
    predicts = pad(labels[:, 1:] != -100, (0, 1))  # never dropped
    dropped = batch.visual & pattern(batch.ordinal, batch.total[:, None], "147") & ~predicts
    reference = Reference(adapted(copy.deepcopy(family.build("eager"))))
    reference.remove(Removal(batch.real, batch.span, [Stage(layer, dropped)], LAYERS))
    expected = reference.model.train()(**batch(), labels=labels, past_key_values=transformers.DynamicCache())
    expected.loss.backward()
    model = vlmopt.optimize(adapted(copy.deepcopy(family.build())), DropByOrdinal(keep_ratio=0.7, layer=layer))
    out = model.train()(**batch(), labels=labels)
    out.loss.backward()
    assert torch.allclose(out.loss, expected.loss, atol=1e-4)
    wanted, found = gradients(reference.model), gradients(model)
    assert found.keys() == wanted.keys()
    assert len(found) == 2 * 3 * LAYERS
    for key, grad in found.items():
        assert torch.allclose(grad, wanted[key], atol=1e-4), key
    assert int((~vlmopt.report(model).rows() & batch.real).sum()) == int(dropped.sum())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_trainer_trains_a_pruned_model(checkpointing: bool, tmp_path: Path) -> None:
    family = FAMILIES["llava"]
    batch, labels = examples(family)
    data = [{**{n: v[i : i + 1] for n, v in batch().items()}, "labels": labels[i : i + 1]} for i in range(2)]

    def collate(samples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        return {name: torch.cat([sample[name] for sample in samples]) for name in samples[0]}

    model = vlmopt.optimize(adapted(copy.deepcopy(family.build())), DropByOrdinal(keep_ratio=0.7, layer=2))
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    arguments = transformers.TrainingArguments(
        str(tmp_path), per_device_train_batch_size=2, max_steps=3, learning_rate=1e-2, report_to=[], use_cpu=True,
        gradient_checkpointing=checkpointing, save_strategy="no", logging_steps=1, disable_tqdm=True,
    )  # fmt: skip
    trainer = transformers.Trainer(model, arguments, train_dataset=data, data_collator=collate)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]
    assert all(not torch.equal(p.detach(), before[n]) for n, p in model.named_parameters() if p.requires_grad)
    assert int((~vlmopt.report(model).rows() & batch.real).sum()) > 0
    merged = vlmopt.restore(model).merge_and_unload()
    assert merged(**batch()).logits.isfinite().all()

"""Every image-text-to-text architecture of transformers is either taken or refused by name with a true reason."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING as MAPPING

import vlmopt
from tests.support.families import FAMILIES, Family, Image
from tests.support.mechanism import TOLERANCE, DropByOrdinal, forward, gap, generate, pattern
from tests.support.reference import Reference, Removal, Stage
from tests.support.snapshot import differences, snapshot
from tests.support.tiny import IMAGE, TEXT, noise
from vlmopt.checks import check, model_facts

DEPTHS = ("num_hidden_layers", "num_layers", "depth", "encoder_layers", "decoder_layers", "num_global_layers")
KINDS = {config.model_type: config for config in MAPPING}
ENCODER = "is an encoder-decoder: images are read by its encoder"
SMALLER = f"{ENCODER}.*smaller images instead"
CROSS = "reads images through cross-attention: its prompt holds one token an image"
INSIDE = "puts images into the prompt inside its decoder"
REFUSED = {
    "t5gemma2": SMALLER,
    "florence2": SMALLER,
    "pix2struct": f"{ENCODER}.*fewer patches",
    "udop": ENCODER,
    "vision-encoder-decoder": ENCODER,
    "mllama": f"{CROSS}.*fewer tiles",
    "idefics": f"{CROSS}.*smaller image_size",
    "kosmos-2": f"{INSIDE}.*64 tokens",
    "kosmos-2.5": f"{INSIDE}.*fewer patches",
    "blip": "has no language decoder",
    "git": "has no language decoder",
}


def shallow(config: Any) -> Any:
    """A default config with two layers everywhere; weights on the meta device cost nothing."""
    for name in DEPTHS:
        if isinstance(vars(config).get(name), int):
            setattr(config, name, 2)
    for name, value in list(vars(config).items()):
        if isinstance(value, transformers.PretrainedConfig):
            shallow(value)
        elif name == "layer_types" and isinstance(value, list):
            config.layer_types = value[:2]
    return config


def built(kind: str, config: Any = None) -> Any:
    try:
        with torch.device("meta"):
            return MAPPING[KINDS[kind]](config or shallow(KINDS[kind]()))
    except Exception as error:
        pytest.skip(f"the default config of {kind} makes no model here: {type(error).__name__}: {error}")


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_taken_or_refused(kind):
    model = built(kind)
    before = snapshot(model)
    try:
        check(model, vlmopt.Policy.load("uniform-25"))
        reason = None
    except ValueError as error:
        reason = str(error)
    if reason is None:
        assert kind not in REFUSED
    else:
        assert kind not in FAMILIES
        assert reason.startswith(type(model).__name__)
        assert "load one of these families" in reason
    assert differences(before, snapshot(model)) == []


@pytest.mark.parametrize("kind", sorted(REFUSED.keys() & KINDS.keys()))
def test_the_reason_is_true(kind):
    with pytest.raises(ValueError, match=REFUSED[kind]):
        vlmopt.optimize(built(kind), "uniform-25")


def test_parts_of_a_model():
    whole = copy.deepcopy(FAMILIES["llava"].build())
    for part, match in (
        (whole.model.language_model, "LlamaModel is not a vision-language model"),
        (whole.model.vision_tower, "CLIPVisionModel has no language decoder"),
        (nn.Sequential(whole), "Sequential is not a model of transformers.*Pass the whole model"),
    ):
        before = snapshot(whole)
        with pytest.raises(ValueError, match=match):
            vlmopt.optimize(part, "uniform-25")
        assert differences(before, snapshot(whole)) == []


@pytest.mark.skipif("gemma4" not in KINDS, reason="family not in this release")
def test_heads_that_differ_from_layer_to_layer():
    """Released checkpoints have wider heads in the layers that see everything."""
    config = KINDS["gemma4"]()
    model = built("gemma4", config)
    structure, _ = check(model, vlmopt.Policy.load("uniform-25"))
    text = config.text_config
    assert model_facts(model, structure)["num_heads"] == text.num_attention_heads
    widths = {kind: layer.self_attn.head_dim for kind, layer in zip(text.layer_types, structure.layers, strict=True)}
    assert len(set(widths.values())) == 2
    assert model_facts(model, structure)["head_dim"] == [widths[kind] for kind in text.layer_types]


def fuyu() -> Any:
    inner = {**TEXT, "num_key_value_heads": 4, "hidden_act": "relu2"}
    return transformers.FuyuConfig(
        text_config=transformers.PersimmonConfig(**inner), image_token_id=IMAGE, patch_size=8, num_channels=3
    )


FUYU = Family(
    "fuyu",
    "Fuyu",
    fuyu,
    lambda rows, rng: {"pixel_values": noise(rng, len(rows), 12, 3 * 8 * 8)},
    spans=lambda *_: [12],
)


@pytest.mark.skipif("fuyu" not in KINDS, reason="family not in this release")
def test_fuyu_has_features_without_a_projector(monkeypatch):
    monkeypatch.setattr(Family, "model_class", transformers.FuyuForCausalLM)
    batch = FUYU.inputs([[5, Image(0), 7]])
    dropped = batch.visual & pattern(batch.ordinal, batch.total[:, None], "147")
    reference = Reference(FUYU.build("eager")).remove(Removal(batch.real, batch.span, [Stage(2, dropped)], 6))
    with vlmopt.optimized(copy.deepcopy(FUYU.build()), DropByOrdinal(keep_ratio=0.7, layer=2)) as model:
        kept = ~dropped
        assert gap(forward(model, batch)[kept], reference.forward(batch())[kept]) < TOLERANCE
        out, again = generate(model, batch), generate(model, batch, use_cache=False)
        assert torch.equal(out.sequences, again.sequences)
        assert vlmopt.report(model).skipped == []

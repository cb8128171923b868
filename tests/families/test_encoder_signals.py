"""What selectors read on the encoder's side: projector inputs, the tower's attention and keys, pixels."""

from __future__ import annotations

import copy

import pytest
import torch

import vlmopt
from tests.support.families import FAMILIES, Image
from tests.support.listen import ROWS, Listen, by_name, listen
from tests.support.mechanism import TOLERANCE, forward, gap
from tests.support.more_families import MORE
from vlmopt.families import families, family_of
from vlmopt.pruning import Pixels, Projector, VisionAttention, VisionKeys, VisualEmbeds

TINY = [*FAMILIES.values(), *MORE.values()]
BY_TOKEN = [f for f in TINY if family_of(f.config()).by_token]
WITH_CELLS = [f for f in TINY if family_of(f.config()).knows_cells]


@by_name(BY_TOKEN)
def test_projector_turns_its_inputs_into_the_tokens(family):
    """Rows are found through window order, newlines, unpadding and pixel shuffle."""
    for tokens in listen(family, family.inputs(ROWS), Projector(), VisualEmbeds()):
        call, patches = tokens.signals[Projector()], ~tokens.structural
        assert bool(call.inputs[~patches].isnan().all())
        with torch.no_grad():
            made = call.function(call.inputs[patches])
        assert gap(made, tokens.signals[VisualEmbeds()][patches]) < TOLERANCE
        assert call.layers is not None or family.name in MORE
        half = tokens.subset(torch.arange(0, len(tokens), 2)).signals[Projector()]
        assert torch.equal(half.inputs.nan_to_num(), call.inputs[::2].nan_to_num())


@by_name([FAMILIES[name] for name in ("llava", "llava_next", "llava_onevision", "internvl", "qwen2_5_vl", "qwen3_vl")])
@pytest.mark.parametrize("rows", ["cls", "all"])
def test_tower_attention_and_keys(family, rows, monkeypatch):
    """Against the weights of the tower's own eager attention, carried along by a marked projector input."""
    model = family.build("eager")
    tower = model.get_submodule(families()[family.name].vision_tower)
    module = __import__(type(next(m for m in tower.modules() if hasattr(m, "is_causal"))).__module__, fromlist=["x"])
    seen, kept = [], module.eager_attention_forward

    def spy(attention, query, key, *args, **kwargs):
        out = kept(attention, query, key, *args, **kwargs)
        seen.append((id(attention), out[1], key))
        return out

    monkeypatch.setattr(module, "eager_attention_forward", spy)
    attentions = [m for m in tower.modules() if hasattr(m, "is_causal") and hasattr(m, "config")]
    layer = len(attentions) - 1
    batch = family.inputs([[5, Image(0), 7]])
    with torch.no_grad():
        copied = copy.deepcopy(model)
        mine = copied.get_submodule(families()[family.name].vision_tower)
        forward(copied, batch)
        wanted = id([m for m in mine.modules() if hasattr(m, "is_causal") and hasattr(m, "config")][layer])
        weights = [w for i, w, _ in seen if i == wanted]
        keys = [k for i, _, k in seen if i == wanted]
    if any(w is None for w in weights):
        pytest.skip("the tower of this release computes its eager weights elsewhere")
    cls = any("class_embedding" in n or "cls_token" in n for n, _ in tower.named_parameters())
    received = torch.cat(
        [(w[:, :, 0, 1:] if cls and rows == "cls" else w.mean(2)[..., int(cls) :]).mean(1).flatten() for w in weights]
    )
    need, other = (VisionAttention(layer, which) for which in (rows, "cls" if rows == "all" else "all"))
    tokens = listen(family, batch, need, other, VisionKeys(layer), Projector())[0]
    patches = ~tokens.structural
    got = tokens.signals[need]
    assert torch.equal(got, tokens.signals[other]) == (not cls)
    p = tokens.signals[Projector()].inputs.shape[1]
    group = 4 if family.name == "internvl" else p
    shown = got[patches].double()
    assert bool((got[~patches] == 0).all())
    if family.name not in ("llava_next", "llava_onevision"):  # those use every row of the projector more or less once
        assert len(shown) * group == len(received)
        assert float(shown.sum() * group - received.sum()) == pytest.approx(0, abs=1e-4)
    if family.name != "internvl":  # as multisets: the order is that of the projector's rows, tested above
        nearest = (shown[:, None] - received.view(-1, p).mean(1).double()).abs().amin(1)
        assert float(nearest.max()) < TOLERANCE
    assert tokens.signals[VisionKeys(layer)].shape == (len(tokens), keys[0].shape[-1])


def test_tower_attention_falls_on_the_right_token():
    """Through the windows of Qwen2.5-VL: a changed cell changes the key of its own token in the first block alone."""
    family = FAMILIES["qwen2_5_vl"]
    model = copy.deepcopy(family.build("sdpa"))
    for holder in (model.config.vision_config, model.model.visual):
        holder.fullatt_block_indexes = [0]
    batch = family.inputs([[5, Image(1), 7]])

    def keys() -> torch.Tensor:
        ear = Listen(keep_ratio=0.9, signals=(VisionKeys(0),))
        with vlmopt.optimized(model, ear):
            forward(model, batch)
        return ear.heard[0].signals[VisionKeys(0)]

    before = keys()
    for token in (0, 4, 7, 14):
        kept = batch.inputs["pixel_values"].clone()
        batch.inputs["pixel_values"][4 * token : 4 * token + 4] += 1.0
        moved = (keys() - before).norm(dim=1) > 1e-3
        batch.inputs["pixel_values"] = kept
        assert moved.nonzero()[:, 0].tolist() == [token]


@by_name(WITH_CELLS)
def test_pixels_lie_under_their_token(family):
    """Every cell gets a colour of its own through the image; the signal must show it at the right grid place."""
    batch = family.inputs([[5, Image(0), 7]])
    pixels = batch.inputs["pixel_values"]
    tokens = listen(family, batch, Pixels())[0]
    _, h, w = tokens.grids[0]
    colours = torch.arange(h * w, dtype=torch.float32).view(h, w) + 1
    if pixels.ndim == 2:  # patches, those of one merged cell together
        group = len(pixels) // (h * w)
        batch.inputs["pixel_values"] = colours.flatten().repeat_interleave(group)[:, None].expand_as(pixels).clone()
    else:
        side = pixels.shape[-1] // w
        image = colours.repeat_interleave(side, 0).repeat_interleave(side, 1)
        batch.inputs["pixel_values"] = image.expand_as(pixels).clone()
    tokens = listen(family, batch, Pixels())[0]
    values = tokens.signals[Pixels()]
    y, x = tokens.coords[:, 1], tokens.coords[:, 2]
    assert torch.equal(values.amin((1, 2)), colours[y, x])
    assert torch.equal(values.amax((1, 2)), colours[y, x])

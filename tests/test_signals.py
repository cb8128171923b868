"""What selectors read: every signal equals what the unwrapped model itself computes there."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

import vlmopt
from pruning import (
    TEXT,
    Activations,
    AttentionRows,
    FastV,
    HiddenStates,
    LookAheadRows,
    Pixels,
    Projector,
    Selection,
    Selector,
    Signal,
    TextEmbeds,
    VisionAttention,
    VisionKeys,
    VisualEmbeds,
    VisualTokens,
)
from tests.families import FAMILIES, MASKABLE, Family, Image
from tests.mechanism import BATCHES, TOLERANCE, Case, forward, gap
from vlmopt.families import families

LAYER = 2
BY_TOKEN = [f for f in FAMILIES.values() if f.name in families() and families()[f.name].by_token]
WITH_CELLS = [f for f in FAMILIES.values() if f.name in families() and families()[f.name].cells is not None]
ROWS = [[5, Image(0), 7], [3, Image(1), Image(2), 6]]


@dataclass(frozen=True, kw_only=True)
class Listen(Selector):
    """Keeps everything but the last token, and what it was shown."""

    adaptive = True
    signals: tuple[Signal, ...] = ()
    heard: list[VisualTokens] = field(default_factory=list, compare=False)

    @property
    def needs(self):
        return frozenset(self.signals)

    def select(self, tokens: VisualTokens) -> Selection:
        self.heard.append(tokens)
        return Selection(torch.arange(len(tokens) - 1))

    def pick(self, tokens: VisualTokens, k: int) -> Selection:
        raise NotImplementedError


def by_name(found: list[Family]) -> Any:
    return pytest.mark.parametrize("family", [pytest.param(f, id=f.name) for f in found])


def listen(family: Family, batch: Any, *signals: Signal, layer: int = 0, attn: str = "sdpa", before: tuple = ()) -> Any:
    """The VisualTokens of every sample of a forward pass that has pictures."""
    ear = Listen(keep_ratio=0.9, layer=layer, signals=signals)
    with vlmopt.optimized(copy.deepcopy(family.build(attn)), [*before, ear]) as model:
        forward(model, batch)
        skipped = {line["what"]: line["why"] for line in vlmopt.report(model).skipped}
    assert ear.heard, skipped
    return ear.heard


def own_embeds(family: Family, batch: Any) -> torch.Tensor:
    """[B, L, d] that the unwrapped model hands to its decoder."""
    model, seen = copy.deepcopy(family.build("sdpa")), []
    decoder = next(m for m in model.modules() if hasattr(m, "layers") and hasattr(m, "embed_tokens"))
    decoder.register_forward_pre_hook(lambda m, a, k: seen.append(k["inputs_embeds"]), with_kwargs=True)
    forward(model, batch)
    return seen[0]


@by_name(MASKABLE)
def test_embeddings_are_those_of_the_model(family):
    batch = family.inputs(ROWS)
    expected = own_embeds(family, batch)
    for row, tokens in enumerate(listen(family, batch, VisualEmbeds(), TextEmbeds(), HiddenStates())):
        places = batch.visual[row].nonzero()[:, 0]
        assert torch.equal(tokens.signals[VisualEmbeds()], expected[row, places])
        assert torch.equal(tokens.signals[HiddenStates()], expected[row, places])
        question = [p for p in batch.real[row].nonzero()[:, 0].tolist() if p > int(places[-1])]
        assert torch.equal(tokens.signals[TextEmbeds()], expected[row, question])


@pytest.mark.parametrize("prompts", ["one", "ragged", "right"])
@by_name(MASKABLE)
def test_look_ahead_is_the_row_of_the_layer_itself(family, prompts):
    case = Case(family, "mid", prompts=prompts)
    batch = case.batch
    with torch.no_grad():
        attention = family.build("eager")(**batch(), output_attentions=True).attentions[LAYER]
    heard = iter(listen(family, batch, LookAheadRows(LAYER), LookAheadRows(LAYER, rows=TEXT), layer=LAYER))
    for row in range(len(batch.ids)):
        places = batch.visual[row].nonzero()[:, 0]
        if not len(places):
            continue
        signals = next(heard).signals
        last = int(batch.real[row].nonzero()[-1])
        assert gap(signals[LookAheadRows(LAYER)][:, 0], attention[row, :, last][:, places]) < TOLERANCE
        question = [p for p in batch.real[row].nonzero()[:, 0].tolist() if p > int(places[-1])]
        assert gap(signals[LookAheadRows(LAYER, rows=TEXT)], attention[row][:, question][..., places]) < TOLERANCE


@pytest.mark.parametrize("attn", ["eager", "sdpa"])
@by_name([FAMILIES[name] for name in ("qwen2_5_vl", "llava", "gemma3")])
def test_look_ahead_behind_an_earlier_cut(family, attn):
    """It sees what the layer really sees then: the survivors, at their positions."""
    batch = family.inputs(BATCHES["ragged"][0][:2])
    first = FastV(keep_ratio=0.6, layer=LAYER)
    ahead = listen(family, batch, LookAheadRows(4), layer=4, attn=attn, before=(first,))
    really = listen(family, batch, AttentionRows(4), layer=5, attn=attn, before=(first,))
    for a, b in zip(ahead, really, strict=True):
        assert torch.equal(a.ordinal, b.ordinal)
        assert gap(a.signals[LookAheadRows(4)], b.signals[AttentionRows(4)]) < TOLERANCE


def test_look_ahead_changes_nothing_by_itself():
    """Hidden states, cache and logits are those of a cut that read nothing."""
    family = FAMILIES["qwen2_5_vl"]
    batch = family.inputs(ROWS)
    outs = []
    for signals in ((), (LookAheadRows(LAYER),)):
        ear = Listen(keep_ratio=0.9, layer=LAYER, signals=signals)
        with vlmopt.optimized(copy.deepcopy(family.build("sdpa")), ear) as model:
            outs.append(
                model.generate(
                    **batch(), max_new_tokens=4, do_sample=False, output_logits=True, return_dict_in_generate=True
                )
            )
    assert torch.equal(outs[0].sequences, outs[1].sequences)
    assert all(torch.equal(a, b) for a, b in zip(outs[0].logits, outs[1].logits, strict=True))
    keys = [[layer.keys for layer in out.past_key_values.layers] for out in outs]
    assert all(torch.equal(a, b) for a, b in zip(*keys, strict=True))


@by_name([f for f in MASKABLE if f.name != "gemma4"])
def test_question_rows_of_the_layer_before(family):
    batch = family.inputs(ROWS)
    with torch.no_grad():
        attention = family.build("eager")(**batch(), output_attentions=True).attentions[LAYER - 1]
    need = AttentionRows(LAYER - 1, rows=TEXT)
    for row, tokens in enumerate(listen(family, batch, need, AttentionRows(LAYER - 1), layer=LAYER)):
        places = batch.visual[row].nonzero()[:, 0]
        question = [p for p in batch.real[row].nonzero()[:, 0].tolist() if p > int(places[-1])]
        assert gap(tokens.signals[need], attention[row][:, question][..., places]) < TOLERANCE
        assert torch.equal(tokens.signals[AttentionRows(LAYER - 1)], tokens.signals[need][:, -1:])


@by_name([f for f in MASKABLE if f.name != "gemma4"])
def test_activations_are_what_enters_the_down_projection(family):
    batch, seen = family.inputs(ROWS), []
    model = copy.deepcopy(family.build("sdpa"))
    decoder = next(m for m in model.modules() if hasattr(m, "layers") and hasattr(m, "embed_tokens"))
    decoder.layers[LAYER - 1].mlp.down_proj.register_forward_pre_hook(lambda m, a: seen.append(a[0]))
    forward(model, batch)
    needs = Activations(LAYER - 1), Activations(LAYER - 1, "text")
    for row, tokens in enumerate(listen(family, batch, *needs, layer=LAYER)):
        assert gap(tokens.signals[needs[0]], seen[0][row, batch.visual[row]]) < TOLERANCE
        assert gap(tokens.signals[needs[1]], seen[0][row, batch.real[row] & ~batch.visual[row]]) < TOLERANCE


@by_name(BY_TOKEN)
def test_projector_turns_its_inputs_into_the_tokens(family):
    """Rows are found through window order, newlines, unpadding and pixel shuffle."""
    for tokens in listen(family, family.inputs(ROWS), Projector(), VisualEmbeds()):
        call, patches = tokens.signals[Projector()], ~tokens.structural
        assert bool(call.inputs[~patches].isnan().all())
        with torch.no_grad():
            made = call.function(call.inputs[patches])
        assert gap(made, tokens.signals[VisualEmbeds()][patches]) < TOLERANCE
        assert call.layers is not None
        half = tokens.subset(torch.arange(0, len(tokens), 2)).signals[Projector()]
        assert torch.equal(half.inputs.nan_to_num(), call.inputs[::2].nan_to_num())


@by_name([FAMILIES[name] for name in ("llava", "llava_next", "llava_onevision", "internvl", "qwen2_5_vl", "qwen3_vl")])
def test_tower_attention_and_keys(family, monkeypatch):
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
    cls = any("class_embedding" in n or "cls_token" in n for n, _ in tower.named_parameters())
    received = torch.cat([(w[:, :, 0, 1:] if cls else w.mean(2)).mean(1).flatten() for w in weights])
    tokens = listen(family, batch, VisionAttention(layer), VisionKeys(layer), Projector())[0]
    patches = ~tokens.structural
    got = tokens.signals[VisionAttention(layer)]
    p = tokens.signals[Projector()].inputs.shape[1]
    group = 4 if family.name == "internvl" else p
    shown = got[patches].double()
    assert bool((got[~patches] == 0).all())
    if family.name not in ("llava_next", "llava_onevision"):  # those use every row of the projector more or less once
        assert len(shown) * group == len(received)
        assert float(shown.sum() * group - received.sum()) == pytest.approx(0, abs=1e-4)
    rows = received.view(-1, p).mean(1) if family.name != "internvl" else None
    if rows is not None:  # as multisets: the order is that of the projector's rows, tested above
        nearest = (shown[:, None] - rows.double()).abs().amin(1)
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
    """Every cell gets a colour of its own through the picture; the signal must show it at the right grid place."""
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
        picture = colours.repeat_interleave(side, 0).repeat_interleave(side, 1)
        batch.inputs["pixel_values"] = picture.expand_as(pixels).clone()
    tokens = listen(family, batch, Pixels())[0]
    values = tokens.signals[Pixels()]
    y, x = tokens.coords[:, 1], tokens.coords[:, 2]
    assert torch.equal(values.amin((1, 2)), colours[y, x])
    assert torch.equal(values.amax((1, 2)), colours[y, x])


def test_signals_that_cannot_be_had_are_refused_before_anything_changes():
    cases = [
        ("gemma3", Projector(), r"gemma3.*llava.*div_prune"),
        ("fast_vlm", VisionAttention(-2), "fast_vlm"),
        ("llava_next", Pixels(), "llava_next.*padding='keep'"),
        ("qwen2_5_vl", VisionAttention(7), "block 7"),
        ("llava", LookAheadRows(9), "layer 9"),
    ]
    for name, need, match in cases:
        if name not in FAMILIES:
            continue
        model = copy.deepcopy(FAMILIES[name].build())
        before = {n: id(m) for n, m in model.named_modules()}
        with pytest.raises(ValueError, match=match):
            vlmopt.optimize(model, Listen(keep_ratio=0.5, layer=0, signals=(need,)))
        assert not hasattr(model, "_vlmopt")
        assert before == {n: id(m) for n, m in model.named_modules()}

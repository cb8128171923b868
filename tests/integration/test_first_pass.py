"""The first pass over smaller images: its attention is that of a plain model on the same short prompt."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch

import vlmopt
from tests.support.families import FAMILIES, GREEDY, Image, Video
from tests.support.listen import ROWS, by_name, listen
from tests.support.mechanism import TOLERANCE, gap
from tests.support.reference import decoder_of
from tests.support.visual import visual
from vlmopt.api import session_of
from vlmopt.pruning import FastV, FirstPass, FirstPassRows, PixelRedundancy, Projector
from vlmopt.pruning.resize import resize_patches
from vlmopt.pruning.signals import PixelScale
from vlmopt.pruning.ui_graph import graph_of

LAYER = 3
POOLED = [
    FAMILIES[n] for n in ("llava", "llava_next", "llava_onevision", "internvl", "gemma3", "mistral3") if n in FAMILIES
]
PATCHES = [FAMILIES[n] for n in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5") if n in FAMILIES]


def middle(n: int, k: int, i: int) -> int:
    """The cell under the centre of the i-th of k equal parts of n, the lower one on an edge."""
    return math.ceil((2 * i + 1) * n / (2 * k)) - 1


def short_prompt(batch: Any, row: int, tokens: Any, shrink: int) -> tuple[list[int], dict[int, list[int]], list[int]]:
    """Places of a row that stay, the places of each block by its middle, and the question's places; token by token."""
    places = batch.visual[row].nonzero()[:, 0].tolist()
    members: dict[int, list[int]] = {}
    separators = []
    rows_of: dict[int, int] = {}
    last_y = 0
    for place, item, (t, y, x) in zip(places, tokens.item.tolist(), tokens.coords.tolist(), strict=True):
        _, h, w = tokens.grids[item]
        h2, w2 = math.ceil(h / shrink), math.ceil(w / shrink)
        if y < 0:
            if last_y in {middle(h, h2, i) for i in range(h2)}:
                separators.append(place)
            continue
        last_y = y
        i, j = int((y + 0.5) * h2 / h), int((x + 0.5) * w2 / w)
        rows_of[place] = (item, t, middle(h, h2, i), middle(w, w2, j))  # type: ignore[assignment]
    at = {
        (item, *coords): place
        for place, item, coords in zip(places, tokens.item.tolist(), tokens.coords.tolist(), strict=True)
    }
    for place, block in rows_of.items():
        members.setdefault(at[block], []).append(place)  # type: ignore[index]
    real = batch.real[row].nonzero()[:, 0].tolist()
    text = [p for p in real if p not in places]
    return sorted([*text, *separators, *members]), members, [p for p in text if p > places[-1]]


def decoder_arguments(family: Any, batch: Any) -> dict[str, Any]:
    """What the plain model hands to its decoder."""
    model, seen = copy.deepcopy(family.build("eager")), []
    decoder_of(model).register_forward_pre_hook(lambda m, a, k: seen.append(k), with_kwargs=True)
    with torch.no_grad():
        model(**batch())
    return seen[0]


def cut(mask: Any, row: int, stay: list[int]) -> Any:
    if isinstance(mask, dict):
        return {kind: cut(one, row, stay) for kind, one in mask.items()}
    if mask is None or mask.ndim == 2:
        return torch.ones(1, len(stay), dtype=torch.long)
    return mask[row if mask.shape[0] > 1 else 0][:, stay][:, :, stay][None]


def check(rows: torch.Tensor, attention: torch.Tensor, batch: Any, row: int, stay: Any, members: Any, question: Any):
    """rows [h, R, n] of the library against the attention [h, S, S] of the short prompt."""
    places = batch.visual[row].nonzero()[:, 0].tolist()
    expected = torch.zeros_like(rows)
    for one, block in members.items():
        for place in block:
            source = attention[:, [stay.index(q) for q in question]]
            expected[:, :, places.index(place)] = source[..., stay.index(one)]
    assert rows.shape[1] == len(question) > 1
    assert gap(rows, expected) < TOLERANCE


@pytest.mark.parametrize("shrink", [2, 3])
@by_name(POOLED)
def test_blocks_of_embeddings_are_read_as_a_plain_model_reads_them(family, shrink):
    batch = family.inputs(ROWS)
    given, need = decoder_arguments(family, batch), FirstPassRows(LAYER, shrink=shrink)
    model = family.build("eager")
    for row, tokens in enumerate(listen(family, batch, need)):
        stay, members, question = short_prompt(batch, row, tokens, shrink)
        embeds = given["inputs_embeds"][row : row + 1].clone()
        for one, block in members.items():
            embeds[0, one] = torch.stack([given["inputs_embeds"][row, p] for p in block]).mean(0)
        positions = given.get("position_ids")
        positions = torch.arange(embeds.shape[1])[None] if positions is None else positions
        with torch.no_grad():
            attention = decoder_of(model)(
                inputs_embeds=embeds[:, stay],
                position_ids=positions[min(row, len(positions) - 1)][None, stay],
                attention_mask=cut(given.get("attention_mask"), row, stay),
                output_attentions=True,
            ).attentions[LAYER][0]
        check(tokens.signals[need], attention, batch, row, stay, members, question)


PROMPTS = {"ragged": ROWS, "video": [[4, Video(0), 3, Image(1), 5], [2, Image(2), 6]]}


@pytest.mark.parametrize("prompts", PROMPTS)
@by_name(PATCHES)
def test_smaller_images_are_read_as_a_plain_model_reads_them(family, prompts):
    batch, shrink = family.inputs(PROMPTS[prompts]), 2
    given, need = decoder_arguments(family, batch), FirstPassRows(LAYER, shrink=shrink)
    model, small, done = family.build("eager"), {}, {"image": 0, "video": 0}
    for kind, pixels, grid in (
        ("image", "pixel_values", "image_grid_thw"), ("video", "pixel_values_videos", "video_grid_thw")
    ):  # fmt: skip
        if pixels in batch.inputs:
            old = batch.inputs[grid]
            new = torch.tensor([[t, 2 * math.ceil(h / 4), 2 * math.ceil(w / 4)] for t, h, w in old.tolist()])
            small[kind] = (pixels, grid, resize_patches(batch.inputs[pixels], old, new, 14, 2, 2), new)
    for row, tokens in enumerate(listen(family, batch, need)):
        stay, members, question = short_prompt(batch, row, tokens, shrink)
        inputs = {name: v[row : row + 1, stay] for name, v in batch.inputs.items() if v.shape[:2] == batch.ids.shape}
        for kind, (pixels, grid, patches, new) in small.items():
            mine = sum(isinstance(part, Video if kind == "video" else Image) for part in PROMPTS[prompts][row])
            sizes = new.prod(1).tolist()
            first, last = done[kind], done[kind] + mine
            done[kind] = last
            if mine:
                inputs[pixels], inputs[grid] = patches[sum(sizes[:first]) : sum(sizes[:last])], new[first:last]
        with torch.no_grad():
            found = model(**inputs, position_ids=given["position_ids"][:, row : row + 1, stay], output_attentions=True)
        readable = [a for a in found.attentions if a is not None]
        attention = readable[LAYER if len(readable) > LAYER else LAYER // 2][0]
        check(tokens.signals[need], attention, batch, row, stay, members, question)


def test_attention_and_graph_are_mixed_and_a_trend_is_divided_out():
    torch.manual_seed(0)
    method = FirstPass(keep_ratio=0.5, debias=1.0)
    tokens = visual([(1, 12, 12)], method.needs)
    scale = {PixelScale(): torch.ones(3)}
    content = torch.rand(144) + 0.5
    rows = (content * torch.exp(2 * torch.arange(144) / 144)).expand(4, 5, 144)
    signals = {**tokens.signals, method.rows: rows, **scale}
    tokens = type(tokens)(**{**vars(tokens), "signals": signals})
    attention = method.debiased(tokens, rows.mean((0, 1)))
    assert abs(torch.corrcoef(torch.stack([attention, torch.arange(144.0)]))[0, 1]) < 0.2
    assert torch.corrcoef(torch.stack([rows[0, 0], torch.arange(144.0)]))[0, 1] > 0.6
    ranks = (attention[:, None] > attention).float().sum(1) / 143
    graph = graph_of(tokens)
    assert gap(method.score(tokens), 0.8 * ranks + 0.2 * graph) < 1e-6
    alone = FirstPass(keep_ratio=0.5, alpha=1.0, debias=0.0)
    assert alone.needs == {alone.rows}
    assert torch.equal(alone.score(tokens).argsort(), rows[0, 0].argsort())
    silent = type(tokens)(**{**vars(tokens), "signals": {**signals, method.rows: rows[:, :0]}})
    assert torch.equal(method.score(silent), graph)


def test_probes_of_the_encoder_do_not_hear_the_first_pass():
    family, need = FAMILIES["qwen2_5_vl"], FirstPassRows(LAYER)
    batch = family.inputs(ROWS)
    alone = [tokens.signals[Projector()].inputs for tokens in listen(family, batch, Projector())]
    both = [tokens.signals[Projector()].inputs for tokens in listen(family, batch, Projector(), need)]
    assert all(torch.equal(a, b) for a, b in zip(alone, both, strict=True))


def test_it_reads_whole_images_where_cells_were_left_out_before_the_tower():
    family, need = FAMILIES["qwen2_5_vl"], FirstPassRows(LAYER)
    batch = family.inputs(ROWS)
    whole = listen(family, batch, need)
    some = listen(family, batch, need, before=(PixelRedundancy(keep_ratio=0.4),))
    for a, b in zip(whole, some, strict=True):
        assert len(b) < len(a)
        assert gap(a.signals[need][..., b.ordinal], b.signals[need]) < TOLERANCE


def test_later_cuts_read_the_real_pass_and_the_cost_is_booked_under_scoring():
    family = FAMILIES["llava"]
    batch = family.inputs(ROWS)
    first = FirstPass(keep_ratio=0.6, attention_layer=LAYER)
    with vlmopt.optimized(copy.deepcopy(family.build()), [first, FastV(keep_ratio=0.2, layer=LAYER + 1)]) as model:
        with torch.no_grad():
            model(**batch())
        report = vlmopt.report(model)
        assert [line["method"] for line in report.applied] == ["first_pass", "fastv"]
        assert report.ms["scoring"] > 0.1
        assert report.ms["prefill"] > 0
        single = model.generate(**batch(), max_new_tokens=4, **GREEDY)
        kept = [m.kept.tolist() for m in vlmopt.report(model).maps(0)]
        model.generate(**batch(), max_new_tokens=4, num_beams=2, **GREEDY)
        assert [m.kept.tolist() for m in vlmopt.report(model).maps(0)] == kept
        assert single.shape[1] == batch.ids.shape[1] + 4


@torch.no_grad()
def test_a_prompt_that_is_partly_cached_has_no_first_pass():
    family = FAMILIES["llava"]
    batch = family.inputs([[5, Image(0), 7]])
    with vlmopt.optimized(copy.deepcopy(family.build()), FirstPass(keep_ratio=0.5)) as model:
        cache = model(input_ids=torch.randint(3, 300, (1, 9)), use_cache=True).past_key_values
        inputs = batch()
        inputs["attention_mask"] = torch.ones(1, 9 + inputs["input_ids"].shape[1], dtype=torch.long)
        model(**inputs, past_key_values=cache)
        reasons = {line["what"]: line["why"] for line in vlmopt.report(model).skipped}
    assert "cached already" in reasons["first_pass at layer 0"]


@pytest.mark.skipif("qwen3_5" not in FAMILIES, reason="no recurrent Qwen in this transformers")
def test_a_layer_without_attention_is_refused_and_the_default_is_one_with():
    model = copy.deepcopy(FAMILIES["qwen3_5"].build())
    with pytest.raises(ValueError, match=r"layer 2 .*layers that have: \[1, 3, 5\]"):
        vlmopt.optimize(model, FirstPass(keep_ratio=0.5, attention_layer=2))
    assert session_of(model) is None
    vlmopt.optimize(model, FirstPass(keep_ratio=0.5))
    vlmopt.restore(model)

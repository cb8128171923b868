"""Contrasts inside real models, against two copies of the model run by hand, without vlmopt."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import vlmopt
from tests.support.families import FAMILIES, GREEDY, Batch, Image
from tests.support.mechanism import IN_CHUNKS, DropByOrdinal
from tests.support.reference import decoder_of
from vlmopt.decoding import VCD, BlankContrast, DeCo, LocalContrast, TextContrast, YesBias, contrast, deco
from vlmopt.runtime.components.second_stream import ATTRIBUTE
from vlmopt.runtime.second_pixels import noise, patches, within

FIVE = ["llava", "qwen2_5_vl", "internvl", "gemma3", "idefics3"]
CLOSE = 1e-5
SCORES: dict[str, Any] = {"return_dict_in_generate": True, "output_scores": True}
ROWS = [[5, Image(0), 7], [3, Image(0), 2], [9, Image(0), 4], [2, Image(0), 11]]


def model_of(name: str) -> Any:
    return copy.deepcopy(FAMILIES[name].build("sdpa"))


def noisy(name: str, inputs: dict[str, torch.Tensor], method: Any, seed: int = 0) -> torch.Tensor:
    """Pixels of the second stream, frame by frame."""
    pixels = inputs["pixel_values"]
    if "image_grid_thw" in inputs:
        config = FAMILIES[name].build("sdpa").config
        return patches(pixels, inputs["image_grid_thw"], config.vision_config, lambda f: within(f, method, seed))
    frames = pixels.flatten(0, -4)
    return torch.stack([within(frame, method, seed) for frame in frames]).view_as(pixels)


def last_logits(model: Any, name: str, given: dict[str, torch.Tensor], ids: torch.Tensor) -> torch.Tensor:
    """Logits of the newest token of a whole sequence, without a cache."""
    new = ids.shape[1] - given["input_ids"].shape[1]
    mask = torch.cat([given["attention_mask"], torch.ones(len(ids), new, dtype=torch.long)], 1)
    whole = {**given, **FAMILIES[name].token_types(ids), "input_ids": ids, "attention_mask": mask}
    with torch.no_grad():
        return model(**whole).logits[:, -1].float()


@pytest.mark.parametrize("name", FIVE)
@pytest.mark.parametrize("method", [VCD(alpha=0.7, t=900), BlankContrast(cutoff=0.3)], ids=lambda m: m.name)
def test_it_is_that_of_two_models(name, method):
    """Sampled with a fixed seed, in a ragged batch: every step's scores are those of two separate models."""
    batch = FAMILIES[name].inputs([*ROWS[:2], [6]])
    plain, other = model_of(name), model_of(name)
    with vlmopt.optimized(model_of(name), [method]) as model:
        torch.manual_seed(3)
        out = model.generate(**batch(), max_new_tokens=3, do_sample=True, top_k=0, **SCORES)
    clean, changed = batch(), {**batch(), "pixel_values": noisy(name, batch(), method)}
    assert not torch.equal(clean["pixel_values"], changed["pixel_values"])
    length = batch.ids.shape[1]
    for step, scores in enumerate(out.scores):
        ids = out.sequences[:, : length + step]
        v, n = (last_logits(m, name, given, ids) for m, given in ((plain, clean), (other, changed)))
        z = contrast(v.log_softmax(-1), n.log_softmax(-1), method.alpha, method.cutoff)
        for row in range(2):
            assert torch.equal(scores[row] > -torch.inf, z[row] > -torch.inf)
            kept = z[row] > -torch.inf
            assert (scores[row] - z[row])[kept].abs().max() < CLOSE
        assert (scores[2] - v[2]).abs().max() < CLOSE


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
@pytest.mark.parametrize("method", [VCD(t=900), TextContrast(), DeCo()], ids=lambda m: m.name)
def test_a_batch_is_its_samples_alone_and_in_any_order(name, method):
    rows = [ROWS[i % 4] for i in range(8)]
    batch = FAMILIES[name].inputs(rows, seed=5)

    def part(chosen: list[int]) -> dict[str, torch.Tensor]:
        given, found = batch(), {}
        for key, value in given.items():
            if key == "pixel_values" and "image_grid_thw" in given:
                pieces = value.split(given["image_grid_thw"].prod(1).tolist())
                found[key] = torch.cat([pieces[i] for i in chosen])
            else:
                found[key] = value[chosen]
        return found

    with vlmopt.optimized(model_of(name), [method]) as model:

        def written(chosen: list[int]) -> torch.Tensor:
            return model.generate(**part(chosen), max_new_tokens=4, **GREEDY)[:, -4:]

        whole = written(list(range(8)))
        order = [3, 7, 0, 5, 2, 6, 1, 4]
        assert torch.equal(written(order), whole[order])
        assert torch.equal(torch.cat([written([i]) for i in range(8)]), whole)


def test_both_halves_of_a_still_image_stay_equal():
    family = FAMILIES["qwen2_5_vl"]
    vision, inputs = family.build("sdpa").config.vision_config, family.inputs([[5, Image(0), Image(1), 7]])()
    grid = inputs["image_grid_thw"]
    p, copies = vision.patch_size, vision.temporal_patch_size
    still = inputs["pixel_values"].view(-1, 3, copies, p * p)
    still = still[:, :, :1].expand_as(still).reshape(inputs["pixel_values"].shape)
    new = patches(still, grid, vision, lambda f: within(f, VCD(), 0)).view(-1, 3, copies, p * p)
    assert torch.equal(new[:, :, 0], new[:, :, 1])
    assert not torch.equal(new, still.view_as(new))


def test_noise_follows_the_pixels_and_the_seed_alone():
    frame = torch.randn(3, 6, 8)
    padded = torch.zeros(3, 9, 10)
    padded[:, :6, :8] = frame
    method = VCD(t=999)
    assert torch.equal(within(padded, method, 0)[:, :6, :8], within(frame, method, 0))
    assert not within(padded, method, 0)[:, 6:].any()
    assert torch.equal(noise(frame, 1), noise(frame.clone(), 1))
    assert not torch.equal(noise(frame, 1), noise(frame, 2))
    assert not torch.equal(noise(frame, 1), noise(frame + 1, 1))
    assert within(frame, BlankContrast(), 0).all()  # a tile of 0 is padding to some models
    assert within(frame, BlankContrast(), 0).abs().max() < 1e-30
    assert not within(torch.zeros(3, 4, 4), method, 0).any()


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
@pytest.mark.parametrize("layer", [0, 2])
def test_the_second_stream_drops_the_tokens_of_the_first(name, layer):
    """By a selector that would choose otherwise for other pixels; before the LLM and inside it."""
    chooses = vlmopt.pruning.FastV(keep_ratio=0.4, layer=layer) if layer else vlmopt.pruning.DivPrune(keep_ratio=0.4)
    batch = FAMILIES[name].inputs([*ROWS[:3], [5]])
    with vlmopt.optimized(model_of(name), [chooses, VCD(t=999)]) as model:
        out = model.generate(**batch(), max_new_tokens=3, **SCORES, **GREEDY)
        maps = [m.kept for m in vlmopt.report(model).maps(0)]
    first, second = out.past_key_values, getattr(out.past_key_values, ATTRIBUTE)
    assert set(first._vlmopt.index) == set(second._vlmopt.index) != set()
    for store, index in first._vlmopt.index.items():
        assert torch.equal(index, second._vlmopt.index[store])
    assert maps


def shares(scores: torch.Tensor) -> torch.Tensor:
    """Probabilities: a constant on all logits says nothing."""
    return scores.float().softmax(-1)


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
@pytest.mark.parametrize("layer", [0, 2])
def test_a_pruned_contrast_is_that_of_two_pruned_models(name, layer):
    batch, method = FAMILIES[name].inputs(ROWS[:2]), VCD(t=900)
    drop = DropByOrdinal(keep_ratio=0.5, layer=layer)
    with vlmopt.optimized(model_of(name), [drop, method]) as model:
        out = model.generate(**batch(), max_new_tokens=1, **SCORES, **GREEDY)
        assert len(vlmopt.report(model).applied) == 1
    changed = {**batch(), "pixel_values": noisy(name, batch(), method)}
    with vlmopt.optimized(model_of(name), [drop]) as model:
        v, n = (last_logits(model, name, given, batch.ids) for given in (batch(), changed))
    v[:, GREEDY["suppress_tokens"]] = -torch.inf
    assert torch.allclose(shares(out.scores[0]), shares(contrast(v, n, 1.0, 0.1)), atol=CLOSE)


@pytest.mark.parametrize("method", [VCD(t=900), TextContrast(), DeCo(), YesBias(c=2.0, ids=[7])], ids=lambda m: m.name)
def test_samples_without_an_image_keep_their_bits(method):
    batch = FAMILIES["llava"].inputs([[5, Image(0), 7], [9]])
    only_text = FAMILIES["llava"].inputs([[5], [9]])
    settings = {"max_new_tokens": 3, **SCORES, **GREEDY}
    plain = model_of("llava")
    with vlmopt.optimized(model_of("llava"), [method]) as model:
        mixed, alone = model.generate(**batch(), **settings), model.generate(**only_text(), **settings)
        report = vlmopt.report(model)
    dense, dense_alone = plain.generate(**batch(), **settings), plain.generate(**only_text(), **settings)
    assert torch.equal(torch.stack(alone.scores), torch.stack(dense_alone.scores))
    assert report.decoding[0]["passes"] == 0
    assert not torch.equal(torch.stack(mixed.scores)[:, 0], torch.stack(dense.scores)[:, 0])
    text, before = torch.stack(mixed.scores)[:, 1], torch.stack(dense.scores)[:, 1]
    if isinstance(method, DeCo):  # the head takes more rows at once, so its sums round otherwise
        assert torch.allclose(text, before, atol=CLOSE)
    else:
        assert torch.equal(text, before)


def test_caches_are_two():
    batch = FAMILIES["llava"].inputs(ROWS[:1])
    with vlmopt.optimized(model_of("llava"), [VCD(t=900)]) as model:
        out = model.generate(**batch(), max_new_tokens=3, **SCORES, **GREEDY)
    first, second = out.past_key_values, getattr(out.past_key_values, ATTRIBUTE)
    before = [layer.keys.clone() for layer in first.layers]
    for layer in second.layers:
        layer.keys.fill_(0)
        layer.values.fill_(0)
    assert all(torch.equal(layer.keys, keys) for layer, keys in zip(first.layers, before, strict=True))
    assert second.get_seq_length() == first.get_seq_length()


def turns(model: Any, name: str, batch: Batch, **settings: Any) -> torch.Tensor:
    """Scores of the second of two turns over one cache, the first of which may have been text."""
    first = model.generate(**batch(), max_new_tokens=2, **SCORES, **GREEDY)
    ids = torch.cat([first.sequences, torch.tensor([[11, 12, 13]])], 1)
    more = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    out = model.generate(**more, past_key_values=first.past_key_values, max_new_tokens=2, **SCORES, **GREEDY)
    return torch.stack(out.scores)


def test_a_second_turn_goes_on_with_both_caches():
    batch = FAMILIES["llava"].inputs(ROWS[:1])
    with vlmopt.optimized(model_of("llava"), [VCD(t=900)]) as model:
        scores = turns(model, "llava", batch)
        first = model.generate(**batch(), max_new_tokens=2, **GREEDY)
        ids = torch.cat([first, torch.tensor([[11, 12, 13]])], 1)
        whole = {**batch(), "input_ids": ids, "attention_mask": torch.ones_like(ids)}
        anew = torch.stack(model.generate(**whole, max_new_tokens=2, **SCORES, **GREEDY).scores)
    kept = anew > -torch.inf
    assert torch.equal(kept, scores > -torch.inf)
    assert (anew - scores)[kept].abs().max() < 1e-4


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
@pytest.mark.parametrize("method", [VCD(t=900), DeCo()], ids=lambda m: m.name)
@pytest.mark.parametrize(
    "settings", [{"use_cache": False}, {"cache_implementation": "static"}, {"num_return_sequences": 1}], ids=str
)
def test_answers_do_not_depend_on_the_cache(name, method, settings):
    batch = FAMILIES[name].inputs(ROWS[:2])
    with vlmopt.optimized(model_of(name), [method]) as model:
        usual = model.generate(**batch(), max_new_tokens=3, **GREEDY)
        assert torch.equal(model.generate(**batch(), max_new_tokens=3, **settings, **GREEDY), usual)


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("method", [VCD(t=900), TextContrast(), DeCo()], ids=lambda m: m.name)
def test_the_pass_of_a_guidance_scale_is_of_another_sequence(method, use_cache):
    """What runs beside is that of the sequence itself; guidance comes first, as with every processor of a call."""
    batch = FAMILIES["llava"].inputs(ROWS[:1])
    given = {"max_new_tokens": 2, "use_cache": use_cache, **SCORES, **GREEDY}
    plain = model_of("llava").generate(**batch(), guidance_scale=1.5, **given)
    with vlmopt.optimized(model_of("llava"), [method]) as model:
        alone, beside = told(model, batch, given, type(method))
        out, guided = told(model, batch, {**given, "guidance_scale": 1.5}, type(method))
    assert torch.allclose(beside[0], guided[0], atol=CLOSE)
    v = plain.scores[0].clone()
    z = method.step(v, guided[0])
    kept = z > -torch.inf
    assert torch.equal(out.scores[0] > -torch.inf, kept)
    assert (out.scores[0] - z)[kept].abs().max() < 1e-4
    assert not torch.equal(alone.scores[0], out.scores[0])


def told(model: Any, batch: Batch, given: dict[str, Any], kind: Any) -> tuple[Any, list[torch.Tensor]]:
    """Return what a generation gives, and what ran beside every step of it."""
    found: list[torch.Tensor] = []
    step = kind.step

    def noted(self: Any, scores: torch.Tensor, beside: torch.Tensor) -> torch.Tensor:
        found.append(beside.clone())
        return step(self, scores, beside)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, "step", noted)
        return model.generate(**batch(), **given), found


@IN_CHUNKS
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
@pytest.mark.parametrize("method", [VCD(t=900), TextContrast(), DeCo()], ids=lambda m: m.name)
def test_prompts_may_come_in_chunks(name, method):
    batch = FAMILIES[name].inputs(ROWS[:2])
    with vlmopt.optimized(model_of(name), [method]) as model:
        whole = model.generate(**batch(), max_new_tokens=3, **SCORES, **GREEDY)
        parts = model.generate(**batch(), max_new_tokens=3, prefill_chunk_size=9, **SCORES, **GREEDY)
    assert torch.equal(whole.sequences, parts.sequences)
    kept = torch.stack(whole.scores) > -torch.inf
    assert (torch.stack(whole.scores) - torch.stack(parts.scores))[kept].abs().max() < 1e-4


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_several_answers_of_one_sample(name):
    batch = FAMILIES[name].inputs(ROWS[:2])
    with vlmopt.optimized(model_of(name), [VCD(t=900)]) as model:
        one = model.generate(**batch(), max_new_tokens=3, **GREEDY)
        torch.manual_seed(0)
        sampled = {**GREEDY, "do_sample": True, "top_k": 1}
        out = model.generate(**batch(), max_new_tokens=3, num_return_sequences=2, **sampled)
    assert torch.equal(out, one.repeat_interleave(2, 0))


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "gemma3"])
def test_deco_reads_early_layers_in_one_product(name):
    batch, layers = FAMILIES[name].inputs(ROWS[:2]), (1, 2, 3)
    plain, counted = model_of(name), list[int]()
    with vlmopt.optimized(model_of(name), [DeCo(layers="1:4")]) as model:
        model.get_output_embeddings().register_forward_hook(lambda m, args, out: counted.append(args[0].shape[1]))
        out = model.generate(**batch(), max_new_tokens=3, output_logits=True, **SCORES, **GREEDY)
    assert counted == [1 + len(layers)] * 3
    decoder, found = decoder_of(plain), dict[int, torch.Tensor]()
    for i in layers:
        decoder.layers[i].register_forward_hook(
            lambda m, args, out, i=i: found.__setitem__(i, (out[0] if isinstance(out, tuple) else out)[:, -1])
        )
    for step, scores in enumerate(out.scores):
        v = last_logits(plain, name, batch(), out.sequences[:, : batch.ids.shape[1] + step])
        assert (out.logits[step] - v).abs().max() < 1e-4
        early = plain.get_output_embeddings()(decoder.norm(torch.stack([found[i] for i in layers], 1))).float()
        cap = getattr(decoder.config, "final_logit_softcapping", None)
        early = early if cap is None else cap * torch.tanh(early / cap)
        v[:, GREEDY["suppress_tokens"]] = -torch.inf
        assert torch.allclose(shares(scores), shares(deco(v, early)), atol=1e-4)


def test_a_mask_that_hides_nothing_or_everything():
    batch = FAMILIES["llava"].inputs(ROWS[:2])

    def first(*methods: Any) -> torch.Tensor:
        with vlmopt.optimized(model_of("llava"), [*methods]) as model:
            scores = model.generate(**batch(), max_new_tokens=1, **SCORES, **GREEDY).scores[0]
        return scores[:, scores[0] > -torch.inf].log_softmax(-1)

    plain = first()
    assert (first(LocalContrast(mask=torch.ones_like, cutoff=0)) - plain).abs().max() < 1e-4
    blank = 2 * plain - first(BlankContrast(cutoff=0))  # what the second stream says, up to a constant
    hidden = first(LocalContrast(mask=torch.zeros_like, cutoff=0))
    assert (hidden - ((plain + 2 * blank) / 3).log_softmax(-1)).abs().max() < 1e-4

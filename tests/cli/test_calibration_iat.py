"""What precedes words for objects: the part "iat" of a calibration, and AdaIAT built from it."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from typing import Any

import pytest
import torch

import vlmopt
from tests.support.close import assert_same
from tests.support.families import FAMILIES, GREEDY, Image
from tests.support.tiny import SPECIAL
from vlmopt.api import session_of
from vlmopt.attention_fix import AdaptiveGeneratedText
from vlmopt.calibration import Calibration, IATCollector, Profile, iat_sums
from vlmopt.calibration.iat_sums import IATSums
from vlmopt.cli.main import main
from vlmopt.metrics.lexicon import Lexicon

PROMPTS = [[5, Image(0), 7], [3, Image(0), 9], [11, Image(0), 4]]
NEW = 12


class Words:
    """A tokenizer whose tokens are words: every id is "w" and its number."""

    eos_token_id, pad_token_id = 2, 0

    def decode(self, ids: Any, **_: Any) -> str:
        return " ".join(f"w{i}" for i in ids if i not in SPECIAL)


LEXICON = Lexicon({f"w{i}": f"w{i}" for i in range(400)}, {}, "every word")


def built(name: str, kind: str = "sdpa") -> Any:
    model: Any = copy.deepcopy(FAMILIES[name].build(kind))
    model.generation_config.suppress_tokens = SPECIAL
    return model


ALL = " ".join(LEXICON.names)


def truth_of(caption: str) -> set[str]:
    """Words with even numbers are there."""
    return {word for word in caption.split() if int(word[1:]) % 2 == 0}


def by_hand(name: str, batch: Any) -> tuple[list[list[torch.Tensor]], list[str]]:
    """Mean weights [layers, H] by kind from full attention matrices over prompt and caption, without a cache."""
    model = built(name, "eager")
    start = batch.ids.shape[1]
    found: list[list[torch.Tensor]] = [[], []]
    captions = []
    with torch.no_grad():
        out = model.generate(**batch(), max_new_tokens=NEW, **GREEDY)
        given = batch()
        ones = torch.ones_like(out[:, start:])
        given["input_ids"], given["attention_mask"] = out, torch.cat([given["attention_mask"], ones], 1)
        for key in ("token_type_ids", "mm_token_type_ids"):
            if key in given:
                given[key] = torch.cat([given[key], 0 * ones], 1)
        matrices = torch.stack(model(**given, output_attentions=True).attentions)  # [L, B, H, N, N]
    for row, ids in enumerate(out[:, start:].tolist()):
        captions.append(Words().decode(ids))
        for token, word in enumerate(ids):
            if token and word not in SPECIAL:
                weights = matrices[:, row, :, start + token - 1, start : start + token]
                found[word % 2 == 0].append(weights.double().mean(-1))
    return found, captions


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_means_are_those_of_full_attention_matrices(name, monkeypatch):
    """Ragged prompts in one batch; every word of the caption is an object, of which the even ones are there."""
    monkeypatch.setattr(iat_sums, "WORDS", 3)
    model, batch = built(name), FAMILIES[name].inputs(PROMPTS)
    found, captions = by_hand(name, batch)
    collector = IATCollector(model, Words(), LEXICON, new_tokens=NEW)
    assert collector.add(batch(), [truth_of(caption) for caption in captions]) == captions
    assert session_of(model) is None
    profile = collector.profile("mine")
    hallucinated, real = (torch.stack(means) for means in found)
    assert profile.stats["words"] == {"hallucinated": len(hallucinated), "real": len(real)}
    assert len(hallucinated) + len(real) == len(PROMPTS) * (NEW - 1)
    expected = [hallucinated.mean(0).sum(-1), real.mean(0).sum(-1), real.mean(0) / hallucinated.mean(0)]
    for got, want in zip((profile.hallucinated, profile.real, profile.ratios), expected, strict=True):
        assert (torch.tensor(got, dtype=torch.float64) - want).abs().max() <= 1e-5
    totals = [means.sum(-1) for means in (hallucinated, real)]
    error = sum(total.var(0) / len(total) for total in totals).sqrt()
    above = (totals[1].mean(0) - totals[0].mean(0)) / error
    assert torch.allclose(torch.tensor(profile.stats["standard_errors"], dtype=torch.float64), above, rtol=1e-3)
    assert profile.samples == len(PROMPTS)


def test_batches_and_an_interrupted_run_add_up(monkeypatch):
    monkeypatch.setattr(iat_sums, "WORDS", 3)
    model, family = built("llava"), FAMILIES["llava"]
    batches = [family.inputs([row], seed=seed) for seed, row in enumerate(PROMPTS)]
    once = IATCollector(model, Words(), LEXICON, new_tokens=NEW)
    for batch in batches:
        once.add(batch(), [truth_of(ALL)])
    begun = IATCollector(model, Words(), LEXICON, new_tokens=NEW)
    begun.add(batches[0](), [truth_of(ALL)])
    state = json.loads(json.dumps(begun.state()))
    again = IATCollector(model, Words(), LEXICON, state, new_tokens=NEW)
    assert again.done == 1
    for batch in batches[1:]:
        again.add(batch(), [truth_of(ALL)])
    assert_same(again.profile("mine").to_dict(), once.profile("mine").to_dict())


def test_planted_heads_are_found():
    """Before real words, head 2 of layer 1 looks at the text three times as much and head 0 of layer 3 half as much."""
    sums, generator = IATSums(5, 4), torch.Generator().manual_seed(0)
    for word in range(400):
        means = torch.full((5, 4), 0.02, dtype=torch.float64)
        if real := word % 4 > 0:
            means[1, 2], means[3, 0] = 0.06, 0.01
        means[2, 3] = 0  # never looks
        noise = 1 + 0.2 * torch.randn(5, 4, generator=generator, dtype=torch.float64)
        sums.take(means * noise, 3 + real, real)
    sums.captions = 100
    facts = {"model_type": "tiny", "layers": 5, "num_heads": 4}
    profile = sums.profile(facts, range(5), "planted")
    ratios = torch.tensor(profile.ratios)
    assert ratios[1, 2] == pytest.approx(3, abs=0.2)
    assert ratios[3, 0] == pytest.approx(0.5, abs=0.05)
    assert ratios[2, 3] == 1
    ratios[1, 2] = ratios[3, 0] = 1
    assert (ratios - 1).abs().max() < 0.1
    assert (profile.hallucinated[1], profile.real[1]) == pytest.approx((0.08, 0.12), abs=0.002)
    assert profile.stats["standard_errors"][1] > 20
    assert profile.stats["standard_errors"][3] < -5
    assert profile.stats["tokens_before"] == {"hallucinated": 3, "real": 4}
    assert "in layers 0, 2, 3, 4" in profile.stats["warnings"][0]


def test_too_few_words_are_refused():
    sums = IATSums(2, 2, {"captions": 7})
    facts = {"model_type": "tiny", "layers": 2, "num_heads": 2}
    for word in range(59):
        sums.take(torch.rand(2, 2), 1, word < 30)
    with pytest.raises(
        ValueError, match=r"7 captions name 29 hallucinated and 30 real objects .* 30 of each .*--samples"
    ):
        sums.profile(facts, range(2), "")
    sums.take(torch.rand(2, 2), 1, False)
    assert sums.profile(facts, range(2), "").stats["words"] == {"hallucinated": 30, "real": 30}


def test_prompts_without_images_are_refused():
    batch = FAMILIES["llava"].inputs([[9]])
    with pytest.raises(ValueError, match="hold no visual tokens"):
        IATCollector(built("llava"), Words(), LEXICON, new_tokens=3).add(batch(), [()])


def test_file_and_method(tmp_path, monkeypatch):
    """What a calibration of captions alone saves is read again, builds AdaIAT, and is refused for other models."""
    monkeypatch.setattr(iat_sums, "WORDS", 3)
    model, batch = built("llava"), FAMILIES["llava"].inputs(PROMPTS)
    iat = IATCollector(model, Words(), LEXICON, new_tokens=NEW)
    run = Calibration(model, [], [], iat=iat)
    assert run.plan(9) == (0, 0)
    iat.add(batch(), [truth_of(ALL)] * 3)
    assert (run.begun, run.state()["iat"]) == (3, iat.state())
    profile = run.profile("mine", "three captions")
    path = profile.save(tmp_path / "profile.json")
    assert Profile.load(path) == profile
    data = json.loads(path.read_text())
    assert data["format"] == 3
    assert "iat" not in replace(profile, iat=None).to_dict()
    for wrong in (data | {"format": 2}, data | {"iat": {}}, {k: v for k, v in data.items() if k != "iat"}):
        path.write_text(json.dumps(wrong))
        with pytest.raises(ValueError, match=r"profile\.json"):
            Profile.load(path)
    high = replace(profile.iat, hallucinated=(9.0,) * 6, real=(9.0,) * 6)  # always too little attention
    policy = [{"method": "adaptive_generated_text", "layers": "1:", "profile": high.to_dict()}]
    plain = model.generate(**batch(), max_new_tokens=NEW, **GREEDY, output_logits=True, return_dict_in_generate=True)
    with vlmopt.optimized(model, policy):
        out = model.generate(**batch(), max_new_tokens=NEW, **GREEDY, output_logits=True, return_dict_in_generate=True)
        (entry,) = vlmopt.report(model).corrections
    assert "IAT profile of mine, 3 samples" in entry["source"]
    assert torch.equal(out.logits[0], plain.logits[0])
    assert not torch.allclose(out.logits[1], plain.logits[1], atol=1e-4)
    bare, own = AdaptiveGeneratedText(alpha=3), AdaptiveGeneratedText(profile=high)
    for method, filled in ((bare, replace(bare, profile=profile.iat)), (own, own)):
        assert profile.apply(vlmopt.Policy(attention=[method])).attention == (filled,)
    with pytest.raises(ValueError, match="calibrate --only iat"):
        vlmopt.optimize(model, bare)
    with pytest.raises(ValueError, match="model_type is 'qwen2_5_vl', the profile's is 'llava'"):
        vlmopt.optimize(built("qwen2_5_vl"), AdaptiveGeneratedText(profile=profile.iat))


# ---------------------------------------------------------------- the command
def test_command_and_what_it_refuses(tmp_path, capsys, monkeypatch):
    out = tmp_path / "profile.json"
    command = ["calibrate", "--model", "tiny-llava", "--only", "iat", "--out", str(out)]
    assert main([*command, "--samples", "2"]) == 2
    assert "2 captions name" in capsys.readouterr().err
    monkeypatch.setattr(iat_sums, "WORDS", 2)
    monkeypatch.setattr("vlmopt.cli.calibrate.BATCH", 4)
    assert main([*command, "--samples", "8"]) == 0
    said = capsys.readouterr().out
    assert "going on after 2 images" in said
    assert "8 captions of generated scenes of habit" in said
    assert "real over hallucinated, by layer" in said
    found = Profile.load(out)
    assert (found.iat.samples, found.sinks, found.heads, found.debias) == (8, None, None, ())
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--only", "iat", "--images", "photos"], "nothing names those in photos"),
        (["--images", "worlds", "--data", "coco.json"], "--only iat"),
        (["--only", "iat", "--only", "sinks"], "give --images"),
        (["--only", "iat", "--host", "fastv:2"], "--only debias"),
    ],
)
def test_requests_that_cannot_be_served(arguments, says, tmp_path, capsys):
    assert main(["calibrate", "--out", str(tmp_path / "p.json"), *arguments]) == 2
    assert says in capsys.readouterr().err

"""The shared row probe: attention of the last prompt row without `output_attentions`, under any kernel."""

from __future__ import annotations

import copy

import pytest
import torch

import vlmopt
from tests.support.families import FAMILIES, GREEDY, MASKABLE
from tests.support.mechanism import LOGITS, NEW_TOKENS, TOLERANCE, Case, forward, gap, generate
from tests.support.reference import Reference, Removal, Stage
from vlmopt import pruning

KEEP, LAYER = 0.4, 2
POLICY = vlmopt.Policy(prune=[pruning.FastV(keep_ratio=KEEP, layer=LAYER, allocation="global")])
probed = pytest.mark.parametrize("family", [pytest.param(f, id=f.name) for f in MASKABLE])


def newlines(report, row: int) -> torch.Tensor:
    """Bool over the visual tokens of a row: separators of grid rows, which are never ranked."""
    return torch.cat([(m.coords < 0).all(1) & (m.grid is not None) for m in report.maps(row)]).bool()


def wanted_drop(family, batch, report) -> torch.Tensor:
    """Bool[B, L] from `output_attentions` of an eager copy: last real row, mean over heads, best tokens stay."""
    model = copy.deepcopy(family.build("eager"))
    with torch.no_grad():
        attention = model(**batch(), output_attentions=True).attentions[LAYER - 1]
    drop = torch.zeros_like(batch.visual)
    for row in range(len(batch.ids)):
        last = int(batch.real[row].nonzero()[-1])
        places = batch.visual[row].nonzero()[:, 0]
        if not len(places):
            continue
        scores = attention[row, :, last].mean(0)[places].masked_fill(newlines(report, row), -1.0)
        keep = int(KEEP * len(places) + 0.5)
        drop[row, places[scores.argsort(descending=True, stable=True)[keep:]]] = True
    return drop


@pytest.mark.parametrize("prompts", ["one", "ragged", "right"])
@pytest.mark.parametrize("attn", ["eager", "sdpa"])
@probed
def test_selects_what_output_attentions_selects(family, attn, prompts):
    case = Case(family, "mid", prompts=prompts)
    batch = case.batch
    with vlmopt.optimized(case.model(attn), POLICY) as model:
        logits = forward(model, batch)
        drop = wanted_drop(family, batch, vlmopt.report(model))
        removal = Removal(batch.real, batch.span, [Stage(LAYER, drop)], 6)
        reference = Reference(family.build("eager")).remove(removal)
        for row in range(len(batch.ids)):
            kept = torch.cat([m.kept for m in vlmopt.report(model).maps(row)] or [torch.ones(0, dtype=torch.bool)])
            assert torch.equal(kept, ~drop[row, batch.visual[row]])
        assert gap(logits[removal.kept()], reference.forward(batch())[removal.kept()]) < TOLERANCE
        if prompts != "right":
            out = generate(model, batch)
            expected = reference.generate(batch(), max_new_tokens=NEW_TOKENS, **GREEDY, **LOGITS)
            assert torch.equal(out.sequences, expected.sequences)
            assert gap(torch.stack(out.logits, 1), torch.stack(expected.logits, 1)) < TOLERANCE


def test_probe_does_not_change_the_probed_layer():
    """A probe alone (its selector keeps everything) leaves every bit as it was."""
    case = Case(FAMILIES["qwen2_5_vl"], "mid", prompts="ragged")
    policy = [pruning.FastV(keep_tokens=10_000, layer=LAYER)]
    plain = generate(case.family.build(), case.batch)
    with vlmopt.optimized(case.model(), policy) as model:
        out = generate(model, case.batch)
        assert any("10000" in line["why"] for line in vlmopt.report(model).skipped)
    assert all(map(torch.equal, out.logits, plain.logits))


def test_scores_do_not_depend_on_the_batch():
    """A row alone and in a padded batch: same choice."""
    family = FAMILIES["llava"]
    ragged = Case(family, "mid", prompts="ragged").batch
    with vlmopt.optimized(copy.deepcopy(family.build()), POLICY) as model:
        forward(model, ragged)
        together = [m.kept for m in vlmopt.report(model).maps(0)]
        alone = {"input_ids": ragged.ids[:1, ragged.real[0]], "pixel_values": ragged.inputs["pixel_values"][:1]}
        model(**alone)
        assert torch.equal(vlmopt.report(model).maps(0)[0].kept, together[0])


def test_lookup_candidates_are_not_the_question():
    """Assisted decoding appends candidates to the prompt; the probe reads the prompt's own last row."""
    family = FAMILIES["llava"]
    batch = Case(family, "mid").batch
    batch.ids[0, -2:] = batch.ids[0, 1:3]  # an earlier bigram, so that there are candidates at once
    with vlmopt.optimized(copy.deepcopy(family.build()), POLICY) as model:
        generate(model, batch)
        plain = vlmopt.report(model).maps(0)[0].kept
        model.generate(**batch(), max_new_tokens=NEW_TOKENS, prompt_lookup_num_tokens=3, **GREEDY)
        assert torch.equal(vlmopt.report(model).maps(0)[0].kept, plain)

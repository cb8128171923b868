"""No cross-talk: several optimized models, nested calls, and threads on one model."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor

import torch

import vlmopt
from tests.support.families import FAMILIES, GREEDY, Image
from tests.support.mechanism import Case, generate
from vlmopt import pruning

LLAVA = FAMILIES["llava"]


def test_several_models_in_one_process():
    cases = [Case(LLAVA, "pre"), Case(LLAVA, "progressive", "pospad"), Case(FAMILIES["qwen3_vl"], "mid")]
    alone = []
    for case in cases:
        with case.optimized() as model:
            alone.append(generate(model, case.batch))
    models = [vlmopt.optimize(case.model(), case.policy) for case in cases]
    plain, expected = LLAVA.build(), generate(LLAVA.build(), cases[0].batch)
    for _ in range(2):
        for model, case, answer in zip(models, cases, alone, strict=True):
            assert all(map(torch.equal, generate(model, case.batch).logits, answer.logits))
            assert all(map(torch.equal, generate(plain, cases[0].batch).logits, expected.logits))
    vlmopt.restore(models[0])
    assert all(map(torch.equal, generate(models[1], cases[1].batch).logits, alone[1].logits))


def test_one_model_runs_inside_the_generate_of_another():
    outer, inner = Case(LLAVA, "progressive"), Case(FAMILIES["qwen2_5_vl"], "mid", prompts="ragged")
    with outer.optimized() as first, inner.optimized() as second:
        expected, nested = generate(first, outer.batch), generate(second, inner.batch)
        answers = []

        def peek(ids, scores, **kwargs):
            answers.append(generate(second, inner.batch))
            second(**inner.batch())
            return torch.zeros(len(ids), dtype=torch.bool)

        out = generate(first, outer.batch, stopping_criteria=[peek])
        assert all(map(torch.equal, out.logits, expected.logits))
        assert all(torch.equal(a.sequences, nested.sequences) for a in answers)
        assert vlmopt.report(first).new_tokens == len(answers)
        assert vlmopt.report(first).key_lengths != vlmopt.report(second).key_lengths


def test_threads_share_one_model():
    """Different prompts at the same time, with a row probe that would betray a shared scratch value."""
    policy = vlmopt.Policy(prune=[pruning.Random(keep_ratio=0.8), pruning.FastV(keep_ratio=0.4, layer=2)])
    rows = [[[5, Image(0), 7]], [[3, Image(0), 4, Image(0), 6]], [[5, Image(0), 7], [9]], [[12]]]
    batches = [LLAVA.inputs(r, seed=i) for i, r in enumerate(rows)]
    with vlmopt.optimized(copy.deepcopy(LLAVA.build()), policy) as model:
        expected = [model.generate(**b(), max_new_tokens=6, **GREEDY) for b in batches]
        with ThreadPoolExecutor(4) as pool:
            jobs = [
                (i, pool.submit(model.generate, **batches[i](), max_new_tokens=6, **GREEDY))
                for _ in range(4)
                for i in range(4)
            ]
            for i, job in jobs:
                assert torch.equal(job.result(), expected[i])

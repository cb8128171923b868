"""Scores are fp32 whatever torch makes tensors of by default."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import vlmopt
from tests.support import corrections
from tests.support.families import FAMILIES, Batch, Image
from tests.support.mechanism import generate
from tests.support.selectors import SETTINGS, works_on
from vlmopt import kv
from vlmopt.families import families
from vlmopt.kernels import patterns
from vlmopt.prefill import SparsePrefill

QWEN = FAMILIES["qwen2_5_vl"]
SPARSE: dict[str, Any] = {"min_len": 1, "max_work": 1e9, "dense_text": 0, "recall_rows": 4}
METHODS: dict[str, Any] = {
    **{
        name: method
        for name, method in SETTINGS.items()
        if works_on(families()[QWEN.name], method) and not method.weights
    },
    **{name: corrections.made(name, QWEN) for name in corrections.SETTINGS if name.endswith("hard")},
    **{name: method(keep_ratio=0.4, recent=2) for name, method in kv.registry.items()},
    **{name: SparsePrefill(pattern=kind(tile=16, run=16), **SPARSE) for name, kind in patterns.registry.items()},
}


@pytest.fixture
def bfloat16() -> Iterator[None]:
    torch.set_default_dtype(torch.bfloat16)
    yield
    torch.set_default_dtype(torch.float32)


def answered(method: Any, batch: Batch) -> tuple[list[torch.Tensor], vlmopt.Report]:
    model = vlmopt.optimize(copy.deepcopy(QWEN.build()), method)
    out = generate(model, batch, max_new_tokens=2)
    return list(out.logits), vlmopt.report(model)


def sparse(report: vlmopt.Report) -> list[dict[str, Any]]:
    """What the report says of sparse layers, but for their times."""
    return [{name: value for name, value in entry.items() if not name.endswith("_ms")} for entry in report.prefill]


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_it_changes_nothing(method: Any, request: pytest.FixtureRequest) -> None:
    batch = QWEN.inputs([[5, Image(0), 7, 8, 9], [3, Image(1), 4, Image(0), 6]])
    logits, report = answered(method, batch)
    request.getfixturevalue("bfloat16")
    again, same = answered(method, batch)
    assert all(map(torch.equal, logits, again))
    assert same.samples == report.samples
    assert sparse(same) == sparse(report)

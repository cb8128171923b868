"""Positions under `paper_compat`: those of the release unless `positions` is given."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch

import vlmopt
from tests.support.families import FAMILIES, Image
from vlmopt import Policy, methods
from vlmopt.pruning import (
    EVS,
    CoreMatching,
    Debias,
    DivPrune,
    FastV,
    FocusUI,
    HoloV,
    PyramidDrop,
    Random,
    SparseVLM,
    VisionZip,
    VisPruner,
    ZeroOrder,
)

RENUMBERED = [
    PyramidDrop(keep_ratio=0.2, layers=(1, 3), paper_compat=True),
    SparseVLM(keep_ratio=0.4, layers=(1, 3), paper_compat=True),
    DivPrune(keep_ratio=0.4, paper_compat=True),
    ZeroOrder(keep_ratio=0.4, paper_compat=True),
    VisionZip(keep_ratio=0.4, tower_layer=-1, paper_compat=True),
    VisPruner(keep_ratio=0.4, tower_layer=-1, paper_compat=True),
    Debias(PyramidDrop(keep_ratio=0.2, layers=(1, 3), paper_compat=True)),
]
KEPT = [
    FastV(keep_ratio=0.4, paper_compat=True),
    SparseVLM(keep_ratio=0.4, layers=(1, 3), recycle=False, paper_compat=True),
    HoloV(keep_ratio=0.4, paper_compat=True),
    EVS(keep_ratio=0.4, paper_compat=True),
    CoreMatching(paper_compat=True),
]


@pytest.mark.parametrize("method", [*RENUMBERED, *KEPT], ids=lambda method: method.label)
def test_positions_are_those_of_the_release_unless_given(method):
    released = "repack" if method in RENUMBERED else "keep"
    assert [stage.numbering for stage in method.stages] == [released] * len(method.stages)
    host = method.host if isinstance(method, Debias) else method
    ours = dataclasses.replace(host, paper_compat=False)
    assert ours.numbering == "keep"
    for given in ("keep", "repack", "pospad"):
        assert dataclasses.replace(host, positions=given).numbering == given
        assert dataclasses.replace(ours, positions=given).numbering == given
    assert FocusUI(keep_ratio=0.5, scorer="s", paper_compat=True).numbering == "pospad"


def test_files_say_positions_only_where_they_were_given():
    for method in (DivPrune(keep_ratio=0.5, paper_compat=True), DivPrune(keep_ratio=0.5)):
        assert "positions" not in methods.to_dict(method)
        assert methods.build(methods.to_dict(method)) == method
    old = {"method": "div_prune", "keep_ratio": 0.5, "paper_compat": True, "positions": "keep"}
    assert methods.build(old).numbering == "keep"
    assert methods.to_dict(methods.build(old)) == old | {"allocation": "global"}


@torch.no_grad()
@pytest.mark.parametrize("method", RENUMBERED, ids=lambda method: method.label)
def test_a_model_runs_with_renumbered_survivors(method):
    family = FAMILIES["llava"]
    model, batch = copy.deepcopy(family.build("sdpa")), family.inputs([[5, Image(0), 7]])
    dense = model(**batch()).logits
    host = method.host if isinstance(method, Debias) else method
    repack, keep = (dataclasses.replace(host, positions=positions) for positions in ("repack", "keep"))
    if isinstance(method, Debias):
        repack, keep = (dataclasses.replace(method, host=host) for host in (repack, keep))
    found = {}
    for name, one in {"released": method, "repack": repack, "keep": keep}.items():
        with vlmopt.optimized(model, one):
            found[name] = model(**batch()).logits
            assert {row["positions"] for row in vlmopt.report(model).applied} == {one.numbering}
    assert torch.equal(found["released"], found["repack"])
    assert not torch.allclose(found["released"], found["keep"])
    assert torch.equal(model(**batch()).logits, dense)


@torch.no_grad()
def test_paper_compat_at_ratio_1_changes_no_bit():
    family = FAMILIES["llava"]
    model, batch = copy.deepcopy(family.build("sdpa")), family.inputs([[5, Image(0), 7]])
    dense = model(**batch()).logits
    for method in (DivPrune, ZeroOrder, PyramidDrop, SparseVLM, VisPruner):
        settings = {"layers": (1, 3)} if method in (PyramidDrop, SparseVLM) else {}
        with vlmopt.optimized(model, method(keep_ratio=1.0, paper_compat=True, **settings)):
            assert torch.equal(model(**batch()).logits, dense)


def test_where_released_positions_mean_nothing_the_way_out_is_named():
    model = FAMILIES["qwen2_5_vl"].build("sdpa")
    with pytest.raises(ValueError, match=r"div_prune: paper_compat=True .*'repack'.* undefined .*positions='keep'"):
        vlmopt.optimize(model, DivPrune(keep_ratio=0.5, paper_compat=True))
    with vlmopt.optimized(model, DivPrune(keep_ratio=0.5, paper_compat=True, positions="keep")):
        pass
    with pytest.raises(ValueError, match=r"div_prune: paper_compat=True .*mixed with \['keep'\]"):
        Policy(prune=[DivPrune(keep_ratio=0.5, paper_compat=True), Random(keep_ratio=0.2, layer=2)])

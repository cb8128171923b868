"""Every selector with an easy and a hard setting; tests cross this table with families and behaviours.

A new selector needs one row here: name -> (easy, hard). Hard means few tokens, a marker, a later layer or several.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from vlmopt.families import Family
from vlmopt.pruning import (
    DART,
    EVS,
    CDPruner,
    CenPrune,
    CoreMatching,
    Debias,
    DivPrune,
    FastV,
    FastVID,
    FirstPass,
    FocusUI,
    HiPrune,
    HoloV,
    InstructionSimilarity,
    MMTok,
    PixelRedundancy,
    Pixels,
    Projector,
    PyramidDrop,
    Random,
    Resize,
    Scope,
    Selector,
    SparseVLM,
    UIGraph,
    Uniform,
    VidCom2,
    VisionAttention,
    VisionKeys,
    VisionZip,
    VisPruner,
    ZeroOrder,
    ZipVL,
)

SELECTORS: dict[str, tuple[Selector, Selector]] = {
    "random": (Random(keep_ratio=0.5), Random(keep_tokens=3, layer=3, positions="pospad")),
    "uniform": (Uniform(keep_ratio=0.5), Uniform(keep_ratio=0.07, layer=1, positions="pospad", marker="last")),
    "pixel_redundancy": (
        PixelRedundancy(),
        PixelRedundancy(keep_ratio=0.3, tolerance=0.5, distance="rms", positions="pospad"),
    ),
    "resize": (Resize(keep_ratio=0.5), Resize(keep_ratio=0.05)),
    "fastv": (FastV(keep_ratio=0.5), FastV(keep_tokens=2, layer=4, positions="pospad", padding="blank")),
    "debias": (
        Debias(FastV(keep_ratio=0.5)),
        Debias(FastV(keep_tokens=2, layer=4, positions="pospad"), fit="per_sample", axes="thw"),
    ),
    "pyramid_drop": (
        PyramidDrop(keep_ratio=0.5, layers=(1, 3)),
        PyramidDrop(ratios=(0.5, 0.3, 0.1), layers=(1, 2, 4), positions="pospad"),
    ),
    "sparse_vlm": (
        SparseVLM(keep_ratio=0.5, layers=(1, 3)),
        SparseVLM(keep_ratio=0.1, layers=(1, 2, 4), heads=1, positions="pospad"),
    ),
    "zipvl": (ZipVL(tau=0.9), ZipVL(tau=0.5, layer=3, rows=4, keep_tokens=5, positions="pospad")),
    "core_matching": (
        CoreMatching(layer=2),
        CoreMatching(layer=3, keep_tokens=3, paper_compat=True, positions="pospad"),
    ),
    "zeroth_order": (
        ZeroOrder(keep_ratio=0.5),
        ZeroOrder(keep_tokens=2, estimator="finite_difference", rank=4, positions="pospad"),
    ),
    "div_prune": (DivPrune(keep_ratio=0.5), DivPrune(keep_tokens=2, positions="pospad")),
    "cd_pruner": (CDPruner(keep_ratio=0.5), CDPruner(keep_tokens=2, relevance="none", positions="pospad")),
    "cen_prune": (CenPrune(keep_ratio=0.5), CenPrune(keep_tokens=2, base="dpp", features="projector_input")),
    "vision_zip": (
        VisionZip(keep_ratio=0.5, tower_layer=-1),
        VisionZip(keep_ratio=0.2, tower_layer=-1, contextual=0.5, positions="pospad"),
    ),
    "vis_pruner": (VisPruner(keep_ratio=0.5, tower_layer=-1), VisPruner(keep_tokens=2, tower_layer=-1, important=0.0)),
    "holov": (HoloV(keep_ratio=0.5, tower_layer=-1), HoloV(keep_tokens=2, tower_layer=-1, crops=2)),
    "ui_graph": (UIGraph(keep_ratio=0.5), UIGraph(keep_tokens=2, threshold=0.4, weighting="sqrt", positions="pospad")),
    "instruction_similarity": (
        InstructionSimilarity(keep_ratio=0.5),
        InstructionSimilarity(keep_tokens=2, alpha=0.3, pooling="max", positions="pospad", marker="last"),
    ),
    "focus_ui": (  # tests that run it on a model use the fixture `untrained_scorer`
        FocusUI(keep_ratio=0.5, scorer="untrained"),
        FocusUI(keep_tokens=2, scorer="untrained", positions="keep", segment="frame"),
    ),
    "first_pass": (
        FirstPass(keep_ratio=0.5),
        FirstPass(keep_tokens=2, attention_layer=3, shrink=3, alpha=1.0, debias=1.0, axes="thw", positions="pospad"),
    ),
    "evs": (EVS(keep_ratio=0.5), EVS(keep_tokens=3, reference="dycoke", positions="pospad", marker="last")),
    "dart": (DART(keep_ratio=0.5), DART(keep_tokens=2, pivots_text=0, segment="frame", positions="pospad")),
    "scope": (Scope(keep_ratio=0.5, tower_layer=-1), Scope(keep_tokens=2, tower_layer=-1, alpha=0, positions="pospad")),
    "mmtok": (MMTok(keep_ratio=0.5), MMTok(keep_tokens=2, features="embeds", relevance="none", positions="pospad")),
    "vidcom2": (VidCom2(keep_ratio=0.5), VidCom2(keep_tokens=2, positions="pospad", marker="last")),
    "fastvid": (
        FastVID(keep_ratio=0.5, tower_layer=-1),
        FastVID(keep_tokens=3, tower_layer=-1, scenes=1, tau=-1, stride=2, beta=0, positions="pospad"),
    ),
    "hiprune": (
        HiPrune(keep_ratio=0.5, object_layer=-1, tower_layer=-1),
        HiPrune(keep_tokens=5, object_layer=-1, tower_layer=-1, alpha=1, positions="pospad"),
    ),
}
SETTINGS = {
    f"{name}-{level}": m for name, row in SELECTORS.items() for level, m in zip(("easy", "hard"), row, strict=True)
}


def with_ratio(method: Selector, keep_ratio: float) -> Selector:
    """The same method with another budget."""
    changes: dict[str, Any] = {"keep_ratio": keep_ratio, "keep_tokens": None}
    if isinstance(method, Debias):
        return replace(method, host=replace(method.host, **changes))
    if getattr(method, "ratios", ()):
        changes["ratios"] = ()
    return replace(method, **changes, padding="keep")


def works_on(family: Family, method: Selector) -> bool:
    """Whether a family has what the method reads; elsewhere it is refused, which has a test of its own."""
    reads = {type(need) for stage in method.stages for need in stage.captures}
    if reads & {Projector, VisionAttention, VisionKeys} and not family.by_token:
        return False
    if Pixels in reads and not family.knows_cells:
        return False
    return family.patch_grid or not (method.resizes_pixels or method.before_tower)

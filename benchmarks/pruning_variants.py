"""The methods that `pruning_quality.py` compares, by the names that its tables give them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from vlmopt.calibration import Profile
from vlmopt.pruning import (
    DART,
    CDPruner,
    CenPrune,
    Debias,
    DivPrune,
    FastV,
    HiPrune,
    HoloV,
    MMTok,
    PyramidDrop,
    Random,
    Resize,
    Scope,
    Selector,
    SparseVLM,
    Uniform,
    VidCom2,
    VisionZip,
    VisPruner,
    ZeroOrder,
)

LAYER = 2  # FastV, SparseVLM: the papers' K; heads of later layers were taught to look at the object asked about
LAYERS = (2, 3, 4)  # PyramidDrop


def variants(keep_ratio: float, pads: bool, profile: Profile | None) -> dict[str, Selector]:
    """Return methods by name at one budget.

    "+ PAS" suppresses padding, "+ trend" divides a measured trend out, "+ own trend" one fitted on the sample. "A + B"
    is A with B and nothing else changed: the tables show what B is worth.
    """
    tower = -2 if pads else -1  # the block whose features the projector reads
    methods: dict[str, Selector] = {
        "random": Random(keep_ratio=keep_ratio),
        "uniform": Uniform(keep_ratio=keep_ratio),
        "zeroth_order": ZeroOrder(keep_ratio=keep_ratio),
        "div_prune": DivPrune(keep_ratio=keep_ratio),
        "cd_pruner": CDPruner(keep_ratio=keep_ratio),
        "cd_pruner, no question": CDPruner(keep_ratio=keep_ratio, relevance="none"),
        "cen_prune": CenPrune(keep_ratio=keep_ratio),
        "vision_zip": VisionZip(keep_ratio=keep_ratio, tower_layer=tower),
        "vis_pruner": VisPruner(keep_ratio=keep_ratio, tower_layer=tower),
        "holov": HoloV(keep_ratio=keep_ratio, tower_layer=tower),
        "dart": DART(keep_ratio=keep_ratio),
        "scope": Scope(keep_ratio=keep_ratio, tower_layer=tower),
        "mmtok": MMTok(keep_ratio=keep_ratio),
        "hiprune": HiPrune(keep_ratio=keep_ratio, object_layer=1, tower_layer=tower),
        "vidcom2": VidCom2(keep_ratio=keep_ratio),
    }
    if pads:
        for name in ("uniform", "zeroth_order", "div_prune", "vision_zip"):
            methods[f"{name} + PAS"] = padded(methods[name])
    else:
        methods["resize"] = Resize(keep_ratio=keep_ratio)
    for host in (
        FastV(keep_ratio=keep_ratio, layer=LAYER),
        PyramidDrop(keep_ratio=keep_ratio, layers=LAYERS),
        SparseVLM(keep_ratio=keep_ratio, layers=(LAYER,)),
    ):
        methods[host.name] = host
        if pads:
            methods[f"{host.name} + PAS"] = padded(host)
        if profile is not None:
            methods[f"{host.name} + trend"] = Debias(host, fit="offline", profile=profile.trend(host))
            if pads:
                both = padded(host)
                methods[f"{host.name} + PAS + trend"] = Debias(both, fit="offline", profile=profile.trend(both))
        name, plain = (f"{host.name} + PAS", padded(host)) if pads else (host.name, host)
        methods[f"{name} + own trend"] = Debias(plain, fit="per_sample")
    return methods


def padded(method: Any) -> Any:
    """Return the same method with padding excluded from its candidates."""
    return replace(method, padding="square")

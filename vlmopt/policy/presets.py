"""Ready-made policies: the controls every table needs, and a few to start from; no paper evaluates the combinations."""

from __future__ import annotations

from vlmopt.attention_fix import ImageBoost, VisionHeads, VisualSink
from vlmopt.pruning import EVS, Debias, DivPrune, FastV, Random, Resize, Uniform, ZeroOrder

from ..kernels.patterns import MinP
from ..prefill import SparsePrefill
from .policy import Policy


def presets() -> dict[str, Policy]:
    """Policies by name; a number is the percentage of visual tokens that stays.

    `safe`, `describe` and `truer-25` redistribute visual sinks: they need a model whose sink dimensions are published,
    or a profile (`Profile.apply`).
    """
    describe = (VisualSink(), VisionHeads())
    return {
        "dense": Policy(),
        "random-25": Policy(prune=(Random(keep_ratio=0.25),)),
        "uniform-25": Policy(prune=(Uniform(keep_ratio=0.25),)),
        "uniform-50": Policy(prune=(Uniform(keep_ratio=0.5),)),
        "resize-25": Policy(prune=(Resize(keep_ratio=0.25),)),
        "attention-25": Policy(prune=(FastV(keep_ratio=0.25, layer=2),)),
        "debiased-25": Policy(prune=(Debias(FastV(keep_ratio=0.25, layer=2), fit="per_sample"),)),
        "diverse-25": Policy(prune=(DivPrune(keep_ratio=0.25),)),
        "zeroth-order-25": Policy(prune=(ZeroOrder(keep_ratio=0.25),)),
        "video-25": Policy(prune=(EVS(keep_ratio=0.25),)),
        "pospad-30": Policy(prune=(FastV(keep_ratio=0.3, layer=2, positions="pospad"),)),
        "progressive": Policy(
            prune=(FastV(keep_ratio=0.5, layer=2), FastV(keep_ratio=0.25, layer=4)),
        ),
        "safe": Policy(attention=(VisualSink(min_nonsink_ratio=0.8),)),
        "describe": Policy(attention=describe),
        "boost": Policy(attention=(ImageBoost(watchdog="mark"),)),
        "truer-25": Policy(prune=(Debias(FastV(keep_ratio=0.25, layer=2), fit="per_sample"),), attention=describe),
        "long-video": Policy(prefill=SparsePrefill(pattern=MinP())),
    }

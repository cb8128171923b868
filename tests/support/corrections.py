"""The table of corrections: an easy and a hard setting each; a new correction is one row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tests.support.families import Family
from vlmopt.attention_fix import (
    AdaptiveGeneratedText,
    AttentionFusion,
    Correction,
    GeneratedText,
    HeadGain,
    HeadGuided,
    HeadProfile,
    IATProfile,
    ImageBoost,
    InformedTokens,
    SinkDiagnosis,
    VisionHeads,
    VisualSink,
)
from vlmopt.checks import model_facts
from vlmopt.runtime.structure import structure_of

DIMS: dict[str, Any] = {"dims": (3, 17), "tau": 1.6}
OPEN: dict[str, Any] = {"min_visual_mass": 0.05, "min_nonsink_ratio": 0.3, "min_nonsink_tokens": 1}
Make = Callable[[dict[str, Any]], Correction]


def heads(facts: dict[str, Any]) -> HeadProfile:
    shape = (3, facts["layers"], facts["num_heads"])
    tables = torch.rand(shape, generator=torch.Generator().manual_seed(0)).tolist()
    names = ("visual_mass", "nonsink_mass", "divergence")
    return HeadProfile(model=facts, samples=8, **dict(zip(names, tables, strict=True)))


def captions(facts: dict[str, Any], attention: float) -> IATProfile:
    row = [1.5, 1.2, 1.0, 0.9] * (facts["num_heads"] // 4)
    return IATProfile(
        model=facts, samples=100, hallucinated=[attention] * facts["layers"], real=[attention] * facts["layers"],
        ratios=[row] * facts["layers"],
    )  # fmt: skip


# Per registered name: settings from facts about the model.
TABLE: dict[str, tuple[Make, Make]] = {
    "visual_sink": (
        lambda f: VisualSink(**DIMS, **OPEN, layers="1:"),
        lambda f: VisualSink(**DIMS, **OPEN, layers="0:", recycle=1.0, scope="per_image", passthrough="fast"),
    ),
    "informed_tokens": (
        lambda f: InformedTokens(layers="1:", summary_block=-1, local_block=-1),
        lambda f: InformedTokens(alpha=1.0, beta=0.6, layers="0:", local_block=-1, summary_block=-1, gamma=1.1),
    ),
    "image_boost": (
        lambda f: ImageBoost(layers="1:"),
        lambda f: ImageBoost(alpha=1.0, layers="0:", gamma=1.1, passthrough="fast", watchdog="stop"),
    ),
    "attention_fusion": (
        lambda f: AttentionFusion(layers="1:"),
        lambda f: AttentionFusion(layers="0:", enhance=0.6, suppress=0.3, sign_safe=True, passthrough="fast"),
    ),
    "head_guided": (
        lambda f: HeadGuided(layers="1:"),
        lambda f: HeadGuided(layers="0:", alpha=1.0, passthrough="fast"),
    ),
    "generated_text": (
        lambda f: GeneratedText(layers="1:"),
        lambda f: GeneratedText(layers="0:", alpha=1.5),
    ),
    "adaptive_generated_text": (
        lambda f: AdaptiveGeneratedText(layers="1:", profile=captions(f, 0.3)),
        lambda f: AdaptiveGeneratedText(layers="0:", alpha=20, profile=captions(f, 9.0)),
    ),
    "vision_heads": (
        lambda f: VisionHeads(),
        lambda f: VisionHeads(layers="0:", strength=2, outliers=False, trace=True),
    ),
    "head_gain": (
        lambda f: HeadGain(layers="1:", profile=heads(f)),
        lambda f: HeadGain(layers="0:", strength=3, criterion="divergence", profile=heads(f)),
    ),
    "sink_diagnosis": (
        lambda f: SinkDiagnosis(**DIMS),
        lambda f: SinkDiagnosis(**DIMS, layers="0:"),
    ),
}  # fmt: skip
SETTINGS = {f"{name}-{level}": make for name, pair in TABLE.items()
            for level, make in zip(("easy", "hard"), pair, strict=True)}  # fmt: skip


def made(name: str, family: Family) -> Correction:
    """One row's setting for a family's tiny model."""
    model: Any = family.build("sdpa")
    return SETTINGS[name](model_facts(model, structure_of(model)))

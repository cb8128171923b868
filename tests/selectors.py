"""Every selector with an easy and a hard setting; tests cross this table with families and behaviours.

A new selector needs one row here: name -> (easy, hard). Hard means few tokens, a marker or a later layer.
"""

from __future__ import annotations

from pruning import FastV, Random, Resize, Selector, Uniform

SELECTORS: dict[str, tuple[Selector, Selector]] = {
    "random": (Random(keep_ratio=0.5), Random(keep_tokens=3, layer=3, positions="pospad")),
    "uniform": (Uniform(keep_ratio=0.5), Uniform(keep_ratio=0.07, layer=1, positions="pospad", marker="last")),
    "resize": (Resize(keep_ratio=0.5), Resize(keep_ratio=0.05)),
    "fastv": (FastV(keep_ratio=0.5), FastV(keep_tokens=2, layer=4, positions="pospad")),
}
SETTINGS = {
    f"{name}-{level}": m for name, row in SELECTORS.items() for level, m in zip(("easy", "hard"), row, strict=True)
}

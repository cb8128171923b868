"""Draw what every method keeps, for its page: `python -m tools.method_pictures [NAME ...]`, from the repository's root.

Selectors choose a quarter of the cells of one bundled page, on tiny-qwen; those that find the count themselves do so.
Patterns read one planted head of 2 048 tokens, with budgets that fit this length. Evictions leave a quarter of the keys
of the page, of which two heads of one layer are drawn.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import vlmopt
from tests.support.evicted import gone
from tests.support.planted import structured
from vlmopt import methods
from vlmopt.frames import Video
from vlmopt.kernels.draw_head import draw_head
from vlmopt.kernels.patterns import (
    PSA,
    AShape,
    Boundary2D,
    DensePattern,
    FlexPrefill,
    GridSparse,
    MInferenceBlocks,
    MinP,
    Pattern,
    PBSAttn,
    ProxyAttn,
    QBoundary,
    Sampled,
    TriShape,
    VerticalSlash,
    XAttention,
)
from vlmopt.kv import Eviction
from vlmopt.overlay import overlay
from vlmopt.policy.text import call
from vlmopt.prompt import as_seen, image_prompt, video_prompt
from vlmopt.pruning import (
    CoreMatching,
    Debias,
    FastV,
    FastVID,
    FocusUI,
    HiPrune,
    PixelRedundancy,
    PyramidDrop,
    Selector,
    SparseVLM,
    ZipVL,
)
from vlmopt.synthetic.clips import frames

ROOT = Path(__file__).parents[1]
OUT = ROOT / "docs" / "pictures"
PAGE = ROOT / "vlmopt" / "synthetic" / "samples" / "page.png"
QUESTION = "Click Save."
KEEP = 0.25
COLOURS = 48  # of the palette: enough for flat pages, and files stay small
TOKENS, SIDE = 2048, 448  # of the planted head; pixels of its map
MOVING = ("evs", "fastvid", "vidcom2")
CLIP = 12  # frames, two to a temporal cell
LAYER, HEADS = 3, 2  # whose keys are drawn
# Where the defaults do not fit six layers, or the count is the method's own.
CHOSEN: dict[str, Selector] = {
    "core_matching": CoreMatching(layer=3),
    "debias": Debias(FastV(keep_ratio=KEEP), fit="per_sample"),
    "fastvid": FastVID(keep_ratio=KEEP, scenes=2),
    "focus_ui": FocusUI(keep_ratio=KEEP, scorer="tiny-qwen"),
    "hiprune": HiPrune(keep_ratio=KEEP, object_layer=-3),
    "pixel_redundancy": PixelRedundancy(),
    "pyramid_drop": PyramidDrop(keep_ratio=KEEP, layers=(2, 3, 4)),
    "sparse_vlm": SparseVLM(keep_ratio=KEEP, layers=(2, 3, 4)),
    "zipvl": ZipVL(tau=0.9),
}
SHAPE = AShape(sink=64, local=256)
PATTERNS: dict[str, tuple[Pattern, str]] = {  # and what is planted
    "a_shape": (SHAPE, "mixed"),
    "boundary_2d": (Boundary2D(vision_vision=GridSparse(), dense_below=0), "boundary"),
    "dense": (DensePattern(), "mixed"),
    "flex_prefill": (FlexPrefill(tile=64, run=64, min_budget=128), "topics"),
    "grid": (GridSparse(), "grid"),
    "min_p": (MinP(), "mixed"),
    "minference_blocks": (MInferenceBlocks(blocks=8), "topics"),
    "pbs_attn": (PBSAttn(tile=64, run=64), "blocks"),
    "proxy_attn": (ProxyAttn(tile=64, run=64, min_budget=256), "topics"),
    "psa": (PSA(exact_tail=128), "topics"),
    "q_boundary": (QBoundary(text=DensePattern(), vision=SHAPE), "boundary"),
    "sampled": (Sampled(), "topics"),
    "tri_shape": (TriShape(sink=64, local=256), "mixed"),
    "vertical_slash": (VerticalSlash(vertical=32, slash=128), "mixed"),
    "x_attention": (XAttention(tile=64, run=64), "topics"),
}


def main(names: list[str]) -> None:
    selectors, patterns, evictions = (
        [row["name"] for row in methods.describe() if row["kind"] == kind and (not names or row["name"] in names)]
        for kind in ("selector", "pattern", "eviction")
    )
    model, processor = vlmopt.load_checkpoint("tiny-qwen")
    for name in selectors:
        method = CHOSEN.get(name) or methods.build({"method": name, "keep_ratio": KEEP})
        assert isinstance(method, Selector)
        save(draw_selector(model, processor, method), OUT / "selectors" / f"{name}.png")
    for name in patterns:
        save(draw_pattern(*PATTERNS[name]), OUT / "patterns" / f"{name}.png")
    for name in evictions:
        evicts = methods.build({"method": name, "keep_ratio": KEEP})
        assert isinstance(evicts, Eviction)
        save(draw_eviction(model, processor, evicts), OUT / "evictions" / f"{name}.png")


def draw_selector(model: torch.nn.Module, processor: object, method: Selector) -> Image.Image:
    """Draw the cells that are left of the page, or of a clip for a method that looks for what moves."""
    if method.name in MOVING:
        shown = frames(count=CLIP)
        clip = torch.stack([torch.from_numpy(np.array(frame)) for frame in shown]).permute(0, 3, 1, 2).float()
        inputs = video_prompt(processor, model, "What moves?", Video(clip, 8.0, 8.0, tuple(range(CLIP)), "generated"))
        shown = shown[::2]
    else:
        page = Image.open(PAGE).convert("RGB")
        inputs, shown = image_prompt(processor, QUESTION, [page]), [as_seen(processor, page)]
    with vlmopt.optimized(model, method), torch.inference_mode():
        model(**inputs)
        return overlay(shown, vlmopt.report(model).maps(0), columns=3)


def draw_eviction(model: Any, processor: Any, method: Eviction) -> Image.Image:
    """Draw the cells whose keys are left of the page when the prompt is over, in the first heads of one layer."""
    page = Image.open(PAGE).convert("RGB")
    inputs = image_prompt(processor, QUESTION, [page])
    visual = inputs["input_ids"][0] == model.config.image_token_id
    with vlmopt.optimized(model, method), torch.inference_mode():
        cache = model.generate(**inputs, max_new_tokens=2, return_dict_in_generate=True).past_key_values
        _, left = gone(cache, len(visual))
        (whole,) = vlmopt.report(model).maps(0)
    heads = [replace(whole, kept=~left[LAYER][0, head][visual]) for head in range(HEADS)]
    return overlay([as_seen(processor, page)] * HEADS, heads, title=f"two heads of layer {LAYER}")


def draw_pattern(pattern: Pattern, kind: str) -> Image.Image:
    """Draw the map of one head, and where the pattern rearranges rows or keys, the map in that order."""
    prefill = replace(structured(kind, heads=1, length=TOKENS), heads=torch.tensor([0]))
    with torch.inference_mode():
        return draw_head(prefill, pattern.build(prefill), 0, detail=4, size=SIDE, title=title(pattern))


def title(pattern: Pattern) -> str:
    text = call(methods.to_dict(pattern))
    return text if len(text) <= 48 else text[:45] + "..."


def save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1024:.0f} KB")


if __name__ == "__main__":
    main(sys.argv[1:])

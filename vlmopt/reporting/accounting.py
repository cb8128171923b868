"""Count the tokens of one sample, in all the meanings that "tokens" has in the literature, and map what was kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..runtime.call import Call
from ..runtime.components.pruning.record import Cut, Cuts


@dataclass(frozen=True)
class VisualMap:
    """What became of one image, tile or video of a sample, for drawings and tables."""

    item: int
    kind: str
    grid: tuple[int, int, int] | None  # (t, h, w) after merging
    coords: Tensor  # Long[n, 3] (t, y, x); -1 where a token is not a patch
    kept: Tensor  # Bool[n]
    markers: Tensor  # Bool[n]: places that carry a PosPad marker instead of their own content
    merged: Tensor  # Bool[n]: places that carry the mixture of several tokens
    merged_into: Tensor  # Long[n]: number, among the sample's visual tokens, of the one it was merged into; or -1
    scores: Tensor | None  # fp32 [n] of the last selector that scored; NaN where a token was not a candidate


def token_counts(call: Call, sample: int, shown: list[VisualMap]) -> dict[str, Any]:
    """Count the tokens of one row of the batch.

    visual_tokens: N of the prompt. visual_tokens_pre_llm: entering layer 0. visual_tokens_kept: left after the last
    cut. layer_average: mean over the decoder layers, markers included. extras: what of the rest is not a plain patch.
    """
    depth = call.session.stages.depth
    stages: list[dict[str, Any]] = []
    total = dict.fromkeys(("all", "pre_llm", "kept", "markers", "merged", "structural"), 0)
    area = 0.0
    for number, context in enumerate(call.page.contexts):
        left = int(context.visual[sample].sum())
        last_layer = markers = 0
        total["all"] += left
        pre_llm = left
        for cut in cuts_of(call, number):
            area += (left + markers) * (cut.layer - last_layer)
            left, last_layer = int(cut.keep[sample].sum()), cut.layer
            new = count(cut.markers, sample)
            markers += new
            pre_llm = left + markers if cut.layer == 0 else pre_llm
            stages.append(of_cut(cut, sample))
        area += (left + markers) * (depth - last_layer)
        total["pre_llm"] += pre_llm
        total["kept"] += left
        total["markers"] += markers
    for m in shown:
        total["merged"] += int((m.merged & m.kept).sum())
        total["structural"] += 0 if m.grid is None else int(((m.coords < 0).all(1) & m.kept).sum())
    length = sum(q for _, q in call.page.query_lengths)  # candidates of assisted decoding among them
    length = min(length, call.request.length or length)
    return {
        "prompt_tokens": length if call.page.prompt_tokens is None else int(call.page.prompt_tokens[sample]),
        "visual_tokens": total["all"],
        "visual_tokens_pre_llm": total["pre_llm"],
        "visual_tokens_kept": total["kept"],
        "markers": total["markers"],
        "layer_average": area / depth,
        "extras": {name: total[name] for name in ("markers", "merged", "structural")},
        "items": [item(m) for m in shown],
        "stages": stages,
    }


def of_cut(cut: Cut, sample: int) -> dict[str, Any]:
    """Return what one cut did to a sample."""
    return {
        "layer": cut.layer,
        "method": cut.method,
        "before": int(cut.before[sample].sum()),
        "after": int(cut.keep[sample].sum()),
        "markers": count(cut.markers, sample),
        "merged": count(cut.written, sample),
        "requested": cut.answers[sample].requested,
        **cut.answers[sample].stats,
    }


def item(m: VisualMap) -> dict[str, Any]:
    return {
        "item": m.item,
        "kind": m.kind,
        "grid": None if m.grid is None else list(m.grid),
        "before": len(m.kept),
        "after": int(m.kept.sum()),
    }


def count(places: Tensor | None, sample: int) -> int:
    return 0 if places is None else int(places[sample].sum())


def cuts_of(call: Call, chunk: int) -> list[Cut]:
    return [cut for cut in call.page.slot(Cuts) if cut.chunk == chunk]


def maps(call: Call, sample: int) -> list[VisualMap]:
    return [m for number in range(len(call.page.contexts)) for m in chunk_maps(call, number, sample)]


def chunk_maps(call: Call, number: int, sample: int, cuts: Sequence[Cut] | None = None) -> list[VisualMap]:
    """Return one map per image of a chunk, after all of its cuts or after those that are given."""
    context = call.page.contexts[number]
    cuts = cuts_of(call, number) if cuts is None else cuts
    out = []
    for span in (s for s in context.spans if s.batch_row == sample):
        n = len(span.index)
        kept, markers, merged = torch.ones(n, dtype=torch.bool), torch.zeros(n, dtype=torch.bool), torch.zeros(n).bool()
        into, scores = torch.full((n,), -1), None
        for cut in cuts:
            kept = cut.keep[sample, span.index].cpu()
            if cut.markers is not None:
                markers |= cut.markers[sample, span.index].cpu()
            if cut.written is not None:
                merged |= cut.written[sample, span.index].cpu()
            if (origin := cut.answers[sample].origin) is not None:
                into = torch.maximum(into, merged_into(cut, sample, origin, context.ordinal[sample])[span.index.cpu()])
            if (given := cut.answers[sample].scores) is not None:
                full = torch.full(context.visual.shape[1:], float("nan"), dtype=torch.float32)
                full[cut.before[sample].cpu()] = given.float().cpu()
                scores = full[span.index.cpu()]
        out.append(VisualMap(span.item, span.kind, span.grid, span.coords.cpu(), kept, markers, merged, into, scores))
    return out


def merged_into(cut: Cut, sample: int, origin: Tensor, ordinal: Tensor) -> Tensor:
    """Return Long[L] over logical indices: into which token each was merged, or -1.

    It is named by its number among the sample's visual tokens.
    """
    offered = cut.before[sample].cpu().nonzero()[:, 0]
    origin = origin.cpu()
    full = torch.full((cut.before.shape[1],), -1)
    full[offered] = torch.where(origin >= 0, ordinal.cpu()[offered[origin.clamp_min(0)]], -1)
    return full

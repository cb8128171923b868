"""Is a selection ever slower than its rule written down plainly? Ours against the rule of each peer, in turns.

The rules stand here as a reader of the papers would write them: no budget shared among images, no row separators, no
rows that have to stay, ties as they come. DivPrune's and FastV's choices must be equal to ours, and VisionZip's merged
tokens, which run through the projector a second time, as its paper merges before it. Inputs are what a model of the
shape hands to a selector (random weights, 2 layers). Then the time to first token, vision tower included: dense, ours,
and a bare hook on the decoder that gathers embeddings, positions and mask by the plain rule, for the two methods that
read nothing inside the model. Goal: selection <= 1.00 of the plain rule, or within 0.2 ms of it, which is what sharing
a budget among images costs; first token <= 1.00 of the hook's.

    python benchmarks/peers.py
    python benchmarks/peers.py --shape llava-1.5-7b --repeats 31
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from shapes import FULL, IMAGE, build
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

import vlmopt
from common import append, interleaved
from vlmopt.pruning import (
    AttentionRows,
    DivPrune,
    FastV,
    Projector,
    Random,
    Selection,
    Selector,
    VisionAttention,
    VisionKeys,
    VisionZip,
    VisualEmbeds,
    VisualTokens,
)

KEEP = 0.25
CONTEXTUAL = 10 / 64
Rule = Callable[[VisualTokens, int], tuple[Tensor, Tensor | None]]


@dataclass(frozen=True, kw_only=True)
class Seen(Selector):
    """Notes what it is shown, for a method; keeps all but one token."""

    adaptive = True
    of: Selector
    notes: list[VisualTokens] = field(default_factory=list, compare=False)

    @property
    def needs(self) -> Any:
        return self.of.needs

    def select(self, tokens: VisualTokens) -> Selection:
        self.notes.append(tokens)
        return Selection(torch.arange(1, len(tokens), device=tokens.item.device))

    def pick(self, tokens: VisualTokens, k: int) -> Selection:
        raise NotImplementedError


def random(tokens: VisualTokens, k: int) -> tuple[Tensor, None]:
    generator = torch.Generator().manual_seed(tokens.seed)
    return torch.randperm(tokens.total, generator=generator)[:k].sort().values.to(tokens.item.device), None


def div_prune(tokens: VisualTokens, k: int) -> tuple[Tensor, None]:
    return farthest_first(tokens.signals[VisualEmbeds()], k), None


def farthest_first(embeds: Tensor, k: int) -> Tensor:
    unit = normalize(embeds.float(), dim=1)
    distance = 1 - unit @ unit.T
    picked = [distance.clone().fill_diagonal_(torch.inf).amin(1).argmax()]
    nearest = distance[picked[0]]
    for _ in range(k - 1):
        picked.append(nearest.argmax())
        nearest = torch.minimum(nearest, distance[picked[-1]])
    return torch.stack(picked).sort().values


def vision_zip(tokens: VisualTokens, k: int) -> tuple[Tensor, Tensor]:
    block = next(need for need in tokens.signals if isinstance(need, VisionAttention)).layer
    attention, keys = tokens.signals[VisionAttention(block)], tokens.signals[VisionKeys(block)]
    projector = tokens.signals[Projector()]
    contextual = int(CONTEXTUAL * k + 0.5)
    dominant = attention.topk(k - contextual).indices
    left = torch.ones(len(tokens), dtype=torch.bool, device=attention.device)
    left[dominant] = False
    rest = left.nonzero()[:, 0]
    step = len(rest) // contextual
    targets = torch.arange(contextual, device=rest.device) * step
    unit = normalize(keys[rest].float(), dim=1)
    group = (unit @ unit[targets].T).argmax(1)
    group[targets] = torch.arange(contextual, device=rest.device)
    features = projector.inputs[rest].float()
    sums = torch.zeros_like(features[:contextual]).index_add_(0, group, features)
    merged = sums / group.bincount(minlength=contextual)[:, None, None]
    return torch.cat([dominant, rest[targets]]).sort().values, projector.function(merged.to(projector.inputs.dtype))


def fastv(tokens: VisualTokens, k: int) -> tuple[Tensor, None]:
    rows = next(value for need, value in tokens.signals.items() if isinstance(need, AttentionRows))
    return rows.mean((0, 1)).topk(k).indices.sort().values, None


def methods(whole_block: int) -> dict[str, tuple[Selector, Rule]]:
    return {
        "random": (Random(keep_ratio=KEEP), random),
        "div_prune": (DivPrune(keep_ratio=KEEP), div_prune),
        "vision_zip": (VisionZip(keep_ratio=KEEP, tower_layer=whole_block), vision_zip),
        "fastv": (FastV(keep_ratio=KEEP, layer=1), fastv),
    }


@torch.inference_mode()
def selection(model: Any, inputs: dict[str, Tensor], repeats: int) -> list[dict[str, Any]]:
    """Milliseconds of ours and of the plain rule, on the same tokens."""
    blocks = getattr(model.config.vision_config, "fullatt_block_indexes", [-1])
    rows = []
    for name, (method, rule) in methods(blocks[-1]).items():
        seen = Seen(keep_ratio=KEEP, layer=method.layer, of=method)
        with vlmopt.optimized(model, seen):
            model(**inputs, logits_to_keep=1)
        (tokens,) = seen.notes
        k = method.budget(len(tokens))
        same(name, method.select(tokens), rule(tokens, k))
        runs = {"ours": lambda m=method, t=tokens: m.select(t), "plain": lambda r=rule, t=tokens, k=k: r(t, k)}
        times = interleaved({label: lambda f=f: timed(f, model.device) for label, f in runs.items()}, repeats)
        ours, plain = (statistics.median(times[label]) for label in ("ours", "plain"))
        ratio = statistics.median(a / b for a, b in zip(times["ours"], times["plain"], strict=True))
        rows.append({"method": name, "tokens": len(tokens), "ours_ms": ours, "plain_ms": plain, "ratio": ratio})
        print(f"  {name:12s} selection {ours:8.2f} ms, plain rule {plain:8.2f} ms, ratio {ratio:6.2f}")
    return rows


def same(name: str, ours: Selection, plain: tuple[Tensor, Tensor | None]) -> None:
    """Refuse to compare what is not the same choice."""
    keep, merged = plain
    if name != "random" and not torch.equal(ours.keep, keep):  # the lot is ranked here, cut there
        raise SystemExit(f"{name}: the plain rule keeps other tokens")
    if ours.written is not None and merged is not None:
        alike = cosine_similarity(ours.written.embeds.float(), merged.float()).amin()
        if alike < 0.9999:
            raise SystemExit(f"{name}: merged tokens differ, lowest cosine {alike:.4f}")


def timed(run: Callable[[], Any], device: torch.device) -> float:
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    run()
    wait()
    return (time.perf_counter() - start) * 1e3


@contextmanager
def bare_hook(model: Any, visual: Tensor, choose: Callable[[Tensor, int], Tensor]) -> Iterator[None]:
    """Do the least that prunes one unpadded prompt: gather what the decoder is handed. visual: Bool[L]."""

    def gather(module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        embeds = kwargs["inputs_embeds"]
        places = visual.nonzero()[:, 0]
        stay = ~visual
        stay[places[choose(embeds[0, places], int(KEEP * len(places) + 0.5))]] = True
        index = stay.nonzero()[:, 0]
        kwargs["inputs_embeds"] = embeds[:, index]
        if kwargs.get("position_ids") is not None:
            kwargs["position_ids"] = kwargs["position_ids"][..., index]
        kwargs["attention_mask"] = torch.ones(1, len(index), dtype=torch.long, device=embeds.device)
        return args, kwargs

    handle = model.model.language_model.register_forward_pre_hook(gather, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@torch.inference_mode()
def first_token(model: Any, inputs: dict[str, Tensor], repeats: int) -> list[dict[str, Any]]:
    """Milliseconds of a prefill with the vision tower."""
    visual = inputs["input_ids"][0] == IMAGE
    rules: dict[str, Callable[[Tensor, int], Tensor]] = {
        "random": lambda embeds, k: torch.randperm(len(embeds))[:k].to(embeds.device),
        "div_prune": farthest_first,
    }

    def forward() -> float:
        return timed(lambda: model(**inputs, use_cache=True, logits_to_keep=1), model.device)

    def optimized(method: Selector) -> float:
        with vlmopt.optimized(model, method):
            return forward()

    def hooked(name: str) -> float:
        with bare_hook(model, visual, rules[name]):
            return forward()

    runs: dict[str, Callable[[], float]] = {"dense": forward}
    for name, method in (("random", Random(keep_ratio=KEEP)), ("div_prune", DivPrune(keep_ratio=KEEP))):
        runs[name] = lambda m=method: optimized(m)
        runs[f"{name}, bare hook"] = lambda n=name: hooked(n)
    times = interleaved(runs, repeats)
    rows = []
    for name, values in times.items():
        bare = times.get(f"{name}, bare hook")
        ratio = statistics.median(a / b for a, b in zip(values, bare, strict=True)) if bare else None
        rows.append({"variant": name, "ms": statistics.median(values), "to_bare_hook": ratio})
        beside = f", {ratio:.3f} of the bare hook" if ratio else ""
        print(f"  {name:22s} first token {statistics.median(values):9.1f} ms{beside}")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(FULL), nargs="+", default=list(FULL))
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--rounds", type=int, default=5, help="of prefills; 0: selections alone")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32")
    options = parser.parse_args()
    shapes = []
    for name in options.shape:
        model, inputs = build(name, options.layers, 2, options.device, getattr(torch, options.dtype))
        print(f"{name}, {options.layers} of {FULL[name]} layers, {options.dtype}, {torch.get_num_threads()} threads")
        chosen = selection(model, inputs, options.repeats)
        first = first_token(model, inputs, options.rounds) if options.rounds else []
        shapes.append({"model": name, "layers_built": options.layers, "selection": chosen, "first_token": first})
        del model
    print(f"appended to {append('peers', {'dtype': options.dtype, 'keep_ratio': KEEP, 'shapes': shapes})}")


if __name__ == "__main__":
    main()

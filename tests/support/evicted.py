"""The oracle of eviction: the dense model with its full cache, where decoded rows do not see what a head evicted."""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

import vlmopt
from tests.support.families import GREEDY, Batch, Family
from tests.support.mechanism import LOGITS, Case, gap
from tests.support.reference import NEVER, Reference
from vlmopt.kv import Eviction
from vlmopt.runtime.context import Own

NEW = 5
TOLERANCE = 1e-5  # of the largest logit


class EvictedReference(Reference):
    """From the end of each prompt on, heads do not see the places that left."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.gone: list[tuple[int, dict[int, Tensor]]] = []  # (end of a prompt, layer -> Bool[B, Hk, end])
        attentions = [m for layer in self.decoder.layers for m in layer.children() if hasattr(m, "layer_idx")]
        self.source: dict[int, int] = {}
        own: dict[str, int] = {}
        for m in attentions:
            kind = str(getattr(m, "layer_type", None))
            if not getattr(m, "is_kv_shared_layer", False):
                own[kind] = m.layer_idx
            self.source[m.layer_idx] = own[kind]

    def evict(self, *prompts: tuple[int, dict[int, Tensor]]) -> EvictedReference:
        self.gone = list(prompts)
        return self

    def logits(self, layer: int, scores: Tensor) -> Tensor:
        for end, gone in self.gone:
            if self.past >= end and self.source[layer] in gone:
                away = gone[self.source[layer]]
                away = away.repeat_interleave(scores.shape[0] // len(away), 0)
                away = away.repeat_interleave(scores.shape[1] // away.shape[1], 1)[:, :, None]
                full = torch.zeros(*away.shape[:3], scores.shape[-1])
                full[..., :end] = away
                scores = scores + NEVER * full
        return scores


def built(family: Family, attn: str) -> Any:
    """A copy of the family's model. Mistral's default window in all layers would leave nothing to evict."""
    model = copy.deepcopy(family.build(attn))
    text = model.config.get_text_config()
    if not getattr(text, "layer_types", None):
        text.sliding_window = None
    return model


@functools.cache
def oracle(family: Family) -> EvictedReference:
    return EvictedReference(built(family, "eager"))


def gone(cache: Any, end: int, real: Tensor | None = None) -> tuple[int, dict[int, Tensor]]:
    """What a cache says has left of a prompt of `end` places: layer -> Bool[B, Hk, end]."""
    state = cache._vlmopt
    found = {}
    for own, index in state.index.items():
        if not isinstance(own, Own):
            continue
        heads = cache.layers[own.layer].keys.shape[1]
        places = state.heads[own] if own in state.heads else index[:, None].expand(-1, heads, -1)
        valid = state.valid[own]
        here = torch.ones_like(places, dtype=torch.bool) if valid is None else valid[:, None, : places.shape[2]]
        left = torch.ones(*places.shape[:2], end, dtype=torch.bool)
        for b in range(places.shape[0]):
            for h in range(places.shape[1]):
                stays = places[b, h][here[b, min(h, here.shape[1] - 1)]]
                assert len(stays.unique()) == len(stays)
                left[b, h, stays[stays < end]] = False
        later = index[:, places.shape[2] :]  # one to one in every head
        assert all(row.tolist() == later[0].tolist() for row in later)
        left[..., [place for place in later[0].tolist() if place < end]] = False
        left[..., state.tail :] = False
        found[own.layer] = left
    return end, found


@dataclass(frozen=True)
class Evicted:
    """One cell: an eviction, and what is cut before it."""

    family: Family
    kv: Eviction
    schedule: str = ""  # of `mechanism.SCHEDULES`; "" cuts nothing
    positions: str = "keep"

    def policy(self, **more: Any) -> vlmopt.Policy:
        prune = Case(self.family, self.schedule, self.positions).policy.prune if self.schedule else ()
        return vlmopt.Policy(prune=prune, kv=self.kv, **more)

    def model(self, attn: str = "sdpa", **more: Any) -> Any:
        return vlmopt.optimize(built(self.family, attn), self.policy(**more))

    def reference(self, batch: Batch) -> EvictedReference:
        removal = Case(self.family, self.schedule, self.positions).removal(batch) if self.schedule else None
        reference = oracle(self.family)
        reference.evict().remove(removal)
        return reference


def generate(model: Any, batch: Any, **kwargs: Any) -> Any:
    settings = {"max_new_tokens": NEW, **GREEDY, **LOGITS, **kwargs}
    if isinstance(model, Reference):
        return model.generate(batch(), **settings)
    return model.generate(**batch(), **settings)


def check(cell: Evicted, batch: Any, attn: str = "sdpa", tolerance: float = TOLERANCE, **kwargs: Any) -> Any:
    """The same tokens and logits as the oracle; returns the cache."""
    model = cell.model(attn)
    out = generate(model, batch, **kwargs)
    vlmopt.restore(model)
    end = batch.ids.shape[1]
    if cell.family.hybrid:  # recurrent layers need a cache that knows of them
        kwargs["past_key_values"] = DynamicCache(config=cell.family.build().config.get_text_config())
    expected = generate(cell.reference(batch).evict(gone(out.past_key_values, end)), batch, **kwargs)
    assert torch.equal(out.sequences, expected.sequences)
    logits = torch.stack(expected.logits, 1)
    assert gap(torch.stack(out.logits, 1), logits) < tolerance * float(logits.abs().max())
    return out.past_key_values

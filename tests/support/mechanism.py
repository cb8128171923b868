"""What the tests of token removal share: a selector that drops by ordinal, schedules, prompts, the oracle's answers."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vlmopt
from tests.support.families import FAMILIES, GREEDY, LAYERS, Batch, Family, Image
from tests.support.reference import Reference, Removal, Stage
from vlmopt.pruning import Selection, Selector, VisualTokens, register

TOLERANCE = 1e-4
NEW_TOKENS = 4
LOGITS: dict[str, Any] = {"return_dict_in_generate": True, "output_logits": True}
IN_CHUNKS = pytest.mark.skipif(
    not hasattr(FAMILIES["llava"].model_class, "_prepare_multimodal_encoder_kwargs_for_generation"),
    reason="this release cannot prefill prompts with images in chunks",
)

# Digits dropped before the first, second and third prune layer of a family ("" = no selector there).
SCHEDULES = {"pre": ("147", "", ""), "mid": ("", "147", ""), "progressive": ("14", "1427", "14278")}
LONG_RUNS = {"pre": ("12367", "", ""), "mid": ("", "12367", ""), "progressive": ("126", "12637", "12637890")}
BATCHES: dict[str, tuple[list[list[Any]], str]] = {
    "one": ([[5, Image(0), 7]], "left"),
    "ragged": ([[5, Image(0), 7], [3, Image(1), Image(2), 6], [9]], "left"),
    "right": ([[5, Image(0), 7], [3, Image(1), Image(2), 6], [9]], "right"),
    "unpadded": ([[5, Image(0), 7], [3, Image(1), Image(2), 6], [9]], ""),  # ragged only by what is dropped
}


def pattern(ordinal: Tensor, total: Tensor | int, digits: str) -> Tensor:
    """Bool like `ordinal`: the digits modulo 10, shifted by the sample's token count so that samples differ."""
    return torch.isin((ordinal + total % 3) % 10, torch.tensor([int(d) for d in digits]))


@register("drop_by_ordinal")
@dataclass(frozen=True, kw_only=True)
class DropByOrdinal(Selector):
    """Drops the visual tokens whose ordinal ends in one of `digits`: knows nothing of content, chunk or cache."""

    digits: str = "147"

    def select(self, tokens: VisualTokens) -> Selection:
        stays = ~pattern(tokens.ordinal, tokens.total, self.digits)
        return Selection(keep=(stays if tokens.held is None else stays | tokens.held).nonzero()[:, 0])

    def pick(self, tokens: VisualTokens, k: int) -> Selection:
        raise NotImplementedError("the digits decide, row separators and all")


@dataclass(frozen=True)
class Case:
    """One cell of the matrix: what is dropped where, under which position policy, for which prompts."""

    family: Family
    schedule: str
    positions: str = "keep"
    prompts: str = "one"

    @property
    def drops(self) -> list[tuple[int, str]]:
        table = LONG_RUNS if self.positions == "pospad" else SCHEDULES
        return [(k, digits) for k, digits in zip(self.family.prune_layers, table[self.schedule], strict=True) if digits]

    @property
    def batch(self) -> Batch:
        rows, side = BATCHES[self.prompts]
        if not side:
            return self.family.inputs(self.family.padded_with_text(rows))
        return self.family.inputs(rows, padding_side=side)

    @property
    def policy(self) -> vlmopt.Policy:
        return vlmopt.Policy(
            prune=[
                DropByOrdinal(digits=digits, keep_ratio=1 - len(digits) / 10, layer=k, positions=self.positions)
                for k, digits in self.drops
            ]
        )

    def removal(self, batch: Batch) -> Removal:
        stages = [
            Stage(k, batch.visual & pattern(batch.ordinal, batch.total[:, None], digits), self.positions)
            for k, digits in self.drops
        ]
        return Removal(batch.real, batch.span, stages, LAYERS)

    def model(self, attn_implementation: str = "sdpa") -> Any:
        return copy.deepcopy(self.family.build(attn_implementation))

    @contextmanager
    def optimized(self, attn_implementation: str = "sdpa") -> Iterator[Any]:
        with vlmopt.optimized(self.model(attn_implementation), self.policy) as model:
            yield model

    def reference(self, batch: Batch) -> Reference:
        return reference_of(self.family.name).remove(self.removal(batch))


@dataclass(frozen=True)
class Answer:
    """What the oracle says about a case."""

    kept: Tensor  # Bool[B, L], markers included
    forward: Tensor
    sequences: Tensor | None
    logits: Tensor | None  # [B, steps, vocab]
    lengths: list[int]


@functools.cache
def reference_of(name: str) -> Reference:
    return Reference(FAMILIES[name].build("eager"))


@functools.cache
def answer(case: Case) -> Answer:
    batch = case.batch
    removal, reference = case.removal(batch), case.reference(batch)
    forward, sequences, logits = reference.forward(batch()), None, None
    if case.prompts != "right":
        out = reference.generate(batch(), max_new_tokens=NEW_TOKENS, **GREEDY, **LOGITS)
        sequences, logits = out.sequences, torch.stack(out.logits, 1)
    return Answer(removal.kept(), forward, sequences, logits, removal.lengths)


@functools.cache
def dense_logits(family: Family, prompts: str) -> Tensor:
    return forward(family.build("sdpa"), Case(family, "pre", "keep", prompts).batch)


@functools.cache
def uncached_equals_cached(family: Family, prompts: str) -> bool:
    """Whether the unwrapped model itself answers the same with and without a cache in this release."""
    model, batch = family.build("sdpa"), Case(family, "pre", "keep", prompts).batch
    with_cache, without = (torch.stack(generate(model, batch, use_cache=use).logits) for use in (True, False))
    return gap(with_cache, without) < TOLERANCE


@torch.no_grad()
def forward(model: nn.Module, batch: Batch, **kwargs: Any) -> Tensor:
    return model(**batch(), **kwargs).logits


def generate(model: Any, batch: Batch, **kwargs: Any) -> Any:
    return model.generate(**batch(), **{"max_new_tokens": NEW_TOKENS, **GREEDY, **LOGITS, **kwargs})


def check(case: Case, attn_implementation: str) -> None:
    """Every promise of token removal for one cell of the matrix."""
    batch, expected = case.batch, answer(case)
    with case.optimized(attn_implementation) as model:
        logits = forward(model, batch)
        assert logits.shape == expected.forward.shape
        assert gap(logits[expected.kept], expected.forward[expected.kept]) < TOLERANCE
        dense = dense_logits(case.family, case.prompts)
        assert gap(logits[expected.kept], dense[expected.kept]) > 100 * TOLERANCE * float(dense.std())
        if expected.sequences is None:
            return
        out = generate(model, batch)
        assert torch.equal(out.sequences, expected.sequences)
        assert gap(torch.stack(out.logits, 1), expected.logits) < TOLERANCE
        assert stored_lengths(out.past_key_values) == expected_lengths(out.past_key_values, expected.lengths)
        if uncached_equals_cached(case.family, case.prompts):
            uncached = generate(model, batch, use_cache=False)
            assert torch.equal(uncached.sequences, expected.sequences)
            assert gap(torch.stack(uncached.logits, 1), expected.logits) < TOLERANCE


def gap(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return float((a - b).abs().max())


def stored_lengths(cache: Any) -> list[int]:
    """Keys held by each layer that keeps everything (neither sliding nor recurrent)."""
    return [layer.keys.shape[-2] for layer in full_layers(cache).values()]


def full_layers(cache: Any) -> dict[int, Any]:
    return {
        i: layer
        for i, layer in enumerate(cache.layers)
        if isinstance(getattr(layer, "keys", None), Tensor)
        and not getattr(layer, "is_sliding", False)
        and hasattr(layer, "get_mask_sizes")
    }


def expected_lengths(cache: Any, prompt: list[int], new_tokens: int = NEW_TOKENS) -> list[int]:
    return [prompt[i] + new_tokens - 1 for i in full_layers(cache)]


def cell(family: Family, *rest: str) -> Any:
    """A parametrisation value with a readable id such as `qwen3_vl-mid-pospad-ragged-sdpa`."""
    return pytest.param(family, *rest, id="-".join([family.name, *rest]))

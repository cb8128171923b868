"""Sparse reading while decoding: some layers read all keys and choose, the layers behind them read what was chosen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ...policy import Policy
from ...reading import SparseReading
from ..call import Call, DecodeStep, PromptStep, Session, Step
from ..component import Account, AttentionPart, Component
from ..context import Store
from ..hooks.attention import plan_of, why_not
from ..points import AttentionCall
from ..structure import ModelStructure, is_window, shared_key_source
from .eviction.check import WINDOW

WHAT = "sparse reading"


@dataclass(frozen=True, eq=False)
class ChosenKeys:
    """The keys that one layer found worth reading."""

    among: torch.Size  # batch, key-value heads and slots that there were
    index: Tensor  # Long[B, Hk, k]


class Choices(dict[Store, ChosenKeys]):
    """State of a step: the last choice among the keys of every store."""


class ReadNow(dict[int, tuple[int, int]]):
    """State of a call: layer -> keys there were and keys read, in the last step."""


class ReadingLayer(AttentionPart):
    """The decoding attention of one layer."""

    def __init__(self, session: Session, layer: int, method: SparseReading, full: bool) -> None:
        source = shared_key_source(session.structure.attentions, layer)
        self.layer, self.method, self.full = layer, method, full
        self.source = layer if source is None else source
        self.stage = session.stages.of(self.source)

    def compute(self, step: Step, at: AttentionCall) -> Tensor | None:
        """Return the layer's attention output [B, 1, H, D]; None where the kernel has to run."""
        if isinstance(step, PromptStep) and step.once_more:
            step.call.skip(WHAT, "without a cache every token reads all keys")
        if not isinstance(step, DecodeStep):
            return None
        store = step.store(self.stage, self.source)
        keys = step.stored(store)  # of a static cache without its empty slots
        if keys < self.method.min_keys:
            return None
        if (reason := why_kernel(step, at)) is not None:
            step.call.skip(WHAT, reason)
            return None
        choices = step.slot(Choices)
        choice = choices.get(store)
        query = at.query.unflatten(1, (at.key.shape[1], -1)).squeeze(3)  # [B, Hk, G, D]
        if self.full or choice is None or choice.among != at.key.shape[:3]:
            out, index = read_all(query, at, self.method.count(keys), keys - 1)
            choices[store] = ChosenKeys(at.key.shape[:3], index)
            read = keys
        else:
            out, read = read_some(query, at, choice.index), choice.index.shape[2]
        step.call.slot(ReadNow)[self.layer] = keys, read
        return out.flatten(1, 2)[:, None]


def why_kernel(step: Step, at: AttentionCall) -> str | None:
    """Say why the kernel has to read all keys, None if it need not."""
    if at.query.shape[2] != 1 or step.call.request.branches == "assisted decoding":
        return "assisted decoding checks its candidates over all keys"
    if at.softcap is not None or at.options.get("position_bias") is not None or at.options.get("dropout"):
        return "logits that are capped or biased, and weights that are dropped, are the kernel's own"
    return None


def read_all(query: Tensor, at: AttentionCall, count: int, own: int) -> tuple[Tensor, Tensor]:
    """Return the output [B, Hk, G, Dv], and Long[B, Hk, count] keys with the largest weight in any row of their group.

    Args:
        query: [B, Hk, G, D], the heads of a group as rows. own: slot of the token itself, which is always chosen.
    """
    logits = (query @ at.key.mT).float() * at.scaling
    if at.mask is not None:
        mask = of_groups(at.mask, query)
        logits = logits.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else logits + mask
    weights = logits.softmax(-1)
    most = weights.amax(2)
    most[..., own] = float("inf")
    return weights.to(at.value.dtype) @ at.value, most.topk(count, sorted=False).indices


def read_some(query: Tensor, at: AttentionCall, index: Tensor) -> Tensor:
    """Return the output [B, Hk, G, Dv] over the keys `index` Long[B, Hk, k] of each head."""
    batch, heads, keys, _ = at.key.shape
    start = torch.arange(batch * heads, device=index.device).view(batch, heads, 1) * keys
    flat = (index + start).flatten()  # one look-up over all heads; `gather` is 15 times slower on a CPU

    def rows(table: Tensor) -> Tensor:
        return table.reshape(batch * heads * keys, -1).index_select(0, flat).view(batch, heads, index.shape[2], -1)

    mask = None
    if at.mask is not None:
        whole = of_groups(at.mask, query)
        mask = whole.expand(batch, heads, -1, keys).gather(3, index[:, :, None].expand(-1, -1, whole.shape[2], -1))
    return scaled_dot_product_attention(query, rows(at.key), rows(at.value), mask, scale=at.scaling)


def of_groups(mask: Tensor, query: Tensor) -> Tensor:
    """Return a mask [B, n] or [B, 1|H, 1, n] as [B, 1|Hk, 1|G, n]."""
    if mask.ndim == 2:
        return mask.bool()[:, None, None]
    if mask.shape[1] == 1:
        return mask
    grouped: Tensor = mask.unflatten(1, (query.shape[1], -1)).squeeze(3)
    return grouped


class SparseReadings(Component):
    """Give every layer with attention over the whole context its part in sparse reading."""

    def __init__(self, session: Session, method: SparseReading) -> None:
        super().__init__(session)
        self.method = method

    @staticmethod
    def check(model: Any, structure: ModelStructure, policy: Policy) -> None:
        method, depth = policy.reading, len(structure.layers)
        if method is not None and len(method.full_layers(depth)) == depth:
            raise ValueError(
                f"read: every one of the {depth} layers of {type(model).__name__} reads all keys; name fewer in full, "
                "or allow a larger max_error"
            )

    @classmethod
    def of(cls, session: Session) -> SparseReadings | None:
        method = session.policy.reading
        return None if method is None else cls(session, method)

    def install(self) -> None:
        session, depth = self.session, len(self.session.structure.layers)
        full = self.method.full_layers(depth)
        for layer in range(depth):
            alone = layer in full and (layer + 1 in full or layer + 1 == depth)  # it chooses for nobody
            if not alone and why_all(session.structure, layer) is None:
                plan_of(session, layer).parts.append(ReadingLayer(session, layer, self.method, layer in full))

    def report(self, call: Call) -> Account:
        """Report what every layer read for the last token."""
        entries = [
            {"layer": layer, "keys": keys, "read": read} for layer, (keys, read) in sorted(call.slot(ReadNow).items())
        ]
        if not entries and WHAT in call.ledger.skipped:
            return Account()
        if not entries:
            why = f"no token was generated over min_keys={self.method.min_keys} keys or more"
            return Account(skipped={WHAT: why})
        some = [entry for entry in entries if entry["read"] < entry["keys"]]
        line = f"applied  {WHAT}: {len(some)} of {self.session.stages.depth} layers read "
        line += f"{sum(e['read'] for e in some)} of {sum(e['keys'] for e in some)} keys for the last token"
        return Account({"read": entries}, [line])


def why_all(structure: ModelStructure, layer: int) -> str | None:
    """Say why a layer reads all that it has, None if it need not."""
    if (reason := why_not(structure.attentions[layer])) is not None:
        return reason
    return WINDOW if is_window(structure, layer) else None

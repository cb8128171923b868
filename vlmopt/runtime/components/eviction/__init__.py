"""Keys and values leave when the prompt is over: which layers, when, and what the cache goes on knowing.

Eviction happens inside the logical cache: it reports the length the sequence would have had, so positions of later
tokens are the model's own. What is read lies in `prompt_keys`, what is chosen in `vlmopt.kv`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .... import kv
from ....kv import Eviction, KVView
from ....policy import Policy
from ... import cache as caches
from ... import cache_kinds
from ...arguments import Request
from ...call import Call, PromptStep, Session, Step
from ...component import Account, AttentionPart, Component
from ...context import CacheState, Own, Store
from ...hooks.attention import plan_of
from ...hooks.layer import entry_of
from ...points import AttentionCall
from ...structure import ModelStructure
from .. import prompt_keys
from ..marks import Marks
from ..prompt_keys import Keys, Prompt
from .check import why_not, why_whole
from .report import Evictions, Kept, evicted, lines

WHAT = "kv eviction"


@dataclass(frozen=True, eq=False)
class Scored:
    """What is known of the keys of one layer."""

    keys: Keys
    scores: Tensor  # fp32 [B, H, n]
    unpacked: tuple[Tensor, Tensor] | None  # keys and values as the layer attended to them, where its cache packs them


@dataclass(frozen=True, eq=False)
class Waiting:
    """One layer that waits for its budget, which depends on all layers."""

    scored: Scored
    sparsity: list[float]  # per sample


@dataclass(eq=False)
class Pending:
    """State of a step behind which keys leave."""

    cache: Any
    waiting: dict[int, Waiting] = field(default_factory=dict)  # by layer
    index: dict[int, tuple[Tensor, Tensor | None]] = field(default_factory=dict)  # layer -> Long[B, H, k], Bool[B, k]


class Evicting(Component):
    """Evict in every layer whose cache can do without some of its keys."""

    def __init__(self, session: Session, method: Eviction) -> None:
        super().__init__(session)
        self.method, structure = method, session.structure
        self.layers = [i for i in range(len(structure.layers)) if why_whole(structure, i) is None]

    @staticmethod
    def check(model: Any, structure: ModelStructure, policy: Policy) -> None:
        reasons = [why_whole(structure, i) for i in range(len(structure.layers))]
        if policy.eviction is not None and None not in reasons:
            raise ValueError(
                f"{policy.eviction.label}: no layer of {type(model).__name__} can do without keys: "
                f"{'; '.join(sorted({str(reason) for reason in reasons}))}"
            )

    @classmethod
    def of(cls, session: Session) -> Evicting | None:
        method = session.policy.eviction
        return None if method is None else cls(session, method)

    def report(self, call: Call) -> Account:
        """Report what each layer kept."""
        entries = evicted(call)
        return Account({"kv": entries}, lines(entries), self.skipped())

    def skipped(self) -> dict[str, str]:
        """Name the layers that keep all keys, with the reason."""
        structure = self.session.structure
        reasons = {i: why_whole(structure, i) for i in range(len(structure.layers))}
        return {f"{self.method.name} in layer {i}": why for i, why in reasons.items() if why is not None}

    def install(self) -> None:
        session = self.session
        for layer in self.layers:
            plan_of(session, layer).parts.append(LayerEviction(self, layer))
        for layer in range(len(session.structure.layers)):
            entry_of(session, layer)  # also where all stay, for what others let go of

    def open_call(self, request: Request, arguments: dict[str, Any]) -> None:
        if request.branches == "assisted decoding":
            raise ValueError(
                f"{self.method.label}: assisted decoding checks its first candidates against the whole prompt, before "
                "keys leave, and would write other tokens than plain decoding; leave out it or kv"
            )

    def open_step(self, step: Step, cache: Any) -> None:
        """Begin behind the corrections, whose marks it reads and adds to."""
        if not isinstance(step, PromptStep) or step.once_more:
            return
        marks = step.find(Marks)
        if marks is not None:  # also of a bare forward: `generate` may go on from its cache
            prompt_keys.note(step, marks)
        if step.ends_prompt:
            if (reason := why_not(step, cache, self.method)) is not None:
                step.call.skip(WHAT, reason)
            else:
                step.put(Pending(cache))

    def close_step(self, step: Step, cache: Any) -> None:
        """Evict where budgets had to wait for all layers, and let the cache know what it holds."""
        if isinstance(step, PromptStep) and (marks := step.find(Marks)) is not None:
            prompt_keys.note_markers(step, marks)
        pending = step.find(Pending)
        if pending is None:
            return
        if pending.waiting:
            for (layer, own), ratios in zip(pending.waiting.items(), self.shares(pending), strict=True):
                self.evict(step, pending, layer, own.scored, list(ratios))
        if pending.index:
            caches.commit(step, self.session.stages.last)
            state = caches.adopted(step, pending.cache, self.session.lease)
            for layer, (index, valid) in pending.index.items():
                self.write_down(state, step, layer, index, valid)
        elif not step.call.page.slot(Evictions):
            step.call.skip(WHAT, "nothing competes: every key of the prompt is protected")

    def shares(self, pending: Pending) -> list[tuple[float, ...]]:
        """Return what every waiting layer keeps of each sample."""
        sparsity = zip(*(layer.sparsity for layer in pending.waiting.values()), strict=True)
        here = zip(*(layer.scored.keys.here for layer in pending.waiting.values()), strict=True)
        samples = [kv.adaptive(own, self.method.keep_ratio, most) for own, most in zip(sparsity, here, strict=True)]
        return list(zip(*samples, strict=True))

    def evict(self, step: Step, pending: Pending, layer: int, scored: Scored, ratios: list[float]) -> None:
        """Shrink the cache of one layer to a share per sample of what competes."""
        keys = scored.keys
        kept = [
            min(kv.kept(all_of_them, ratio), stored - held)
            for all_of_them, ratio, stored, held in zip(keys.competing, ratios, keys.stored, keys.held, strict=True)
        ]
        counts = [own + held for own, held in zip(kept, keys.held, strict=True)]
        before, bytes_before = keys.real.shape[2], cache_kinds.layer_bytes(pending.cache, layer)
        if counts == keys.stored:  # every real key stays, and so does padding
            if any(keys.competing):
                both = Kept(layer, (before, before), (bytes_before, bytes_before), keys.competing, kept)
                step.call.page.slot(Evictions).append(both)
            return
        scores = scored.scores if self.method.per_head else scored.scores.mean(1, keepdim=True)
        index, valid = kv.choose(
            scores.to(step.device), keys.protected, keys.real, torch.tensor(counts, device=step.device)
        )
        caches.adopted(step, pending.cache, self.session.lease)
        caches.keep_slots(pending.cache, layer, index, scored.unpacked)
        pending.index[layer] = (keys.places.expand(-1, index.shape[1], -1).gather(2, index), valid)
        slots, sizes = (before, index.shape[2]), (bytes_before, cache_kinds.layer_bytes(pending.cache, layer))
        step.call.page.slot(Evictions).append(Kept(layer, slots, sizes, keys.competing, kept))

    def write_down(self, state: CacheState, step: Step, layer: int, places: Tensor, valid: Tensor | None) -> None:
        """Let the cache's state say what the slots of a layer are."""
        own = Own(self.session.stages.of(layer), layer)
        state.index[own], state.valid[own] = places[:, 0], valid
        state.heads.pop(own, None)
        if places.shape[1] > 1:
            state.heads[own] = places
        step.slot(Marks).forget(own)


class LayerEviction(AttentionPart):
    """Score and evict in one layer when the last row of a prompt has passed."""

    def __init__(self, owner: Evicting, layer: int) -> None:
        self.owner, self.layer, self.session = owner, layer, owner.session
        self.stage = owner.session.stages.of(layer)

    @torch.no_grad()
    def behind(self, step: Step, at: AttentionCall, out: Tensor) -> Tensor:
        """Score the keys, and drop some where budgets need not wait."""
        pending = step.find(Pending)
        if pending is not None and isinstance(step, PromptStep) and not step.again:
            with step.call.ledger.timed(step.call.page.scoring):
                self.read(step, pending, at)
        return out

    def read(self, step: PromptStep, pending: Pending, at: AttentionCall) -> None:
        """Score the keys that the layer attended to."""
        owner, method = self.owner, self.owner.method
        prompt: Prompt = step.remember(("kv prompt", self.stage), None, lambda: prompt_keys.read_prompt(step, method))
        store = step.store(self.stage, self.layer)
        heads = None if step.state is None else step.state.heads.get(store)
        keys: Keys = step.remember(("kv keys", store), None, lambda: prompt_keys.read_keys(step, store, heads, prompt))
        view = self.view(step, prompt, keys, store, at)
        unpacked = (at.key, at.value) if cache_kinds.is_quantized(pending.cache) else None
        scored = Scored(keys, scores_of(method, view), unpacked)
        if method.layer_budgets == "adaptive":
            pending.waiting[self.layer] = Waiting(scored, kv.sparsity(view.attention).tolist())
        else:
            depth, rank = len(owner.layers), owner.layers.index(self.layer)
            ratios = [kv.ratios(method, depth, n)[rank] for n in keys.competing]
            owner.evict(step, pending, self.layer, scored, ratios)

    def view(self, step: PromptStep, prompt: Prompt, keys: Keys, store: Store, at: AttentionCall) -> KVView:
        """Return what the method may know of the layer's keys."""
        method, device, around = self.owner.method, at.key.device, None
        if method.on_grid:
            around = step.remember(("kv around", store), None, lambda: prompt_keys.around(prompt, keys))
        return KVView(
            keys=at.key,
            values=at.value,
            real=keys.real.to(device),
            places=prompt_keys.at(prompt.number, keys.places).to(device),
            layer=self.layer,
            seed=self.session.policy.seed,
            probe=prompt_keys.read_targets(step, self.stage, method.rows, prompt, at) if method.rows else None,
            neighbours=None if around is None else around.to(device),
        )


def scores_of(method: Eviction, view: KVView) -> Tensor:
    """Return the scores of a method, which may be anybody's."""
    scores, shape = method.score(view), view.keys.shape[:3]
    if scores.shape != shape:
        raise ValueError(
            f"{method.label}: score must return one value per key, [B, Hk, n] = {tuple(shape)}, got "
            f"{tuple(scores.shape)}"
        )
    return scores

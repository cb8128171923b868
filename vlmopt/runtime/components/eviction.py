"""Keys and values leave when the prompt is over: which layers, when, and what the cache goes on knowing.

Eviction happens inside the logical cache: it reports the length the sequence would have had, so positions of later
tokens are the model's own. What is read lies in `prompt_keys`, what is chosen in `vlmopt.kv`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ... import kv
from ...kv import Eviction, KVView
from ...policy import Policy
from .. import cache as caches
from .. import compat
from ..arguments import Request
from ..call import Call, PromptStep, Session, Step
from ..component import Account, AttentionPart, Component
from ..context import Own
from ..hooks.attention import plan_of
from ..hooks.decoder import commit
from ..hooks.layer import entry_of
from ..points import AttentionCall
from ..structure import ModelStructure
from . import prompt_keys
from .eviction_check import why_not, why_whole
from .eviction_report import Evictions, Kept, evicted, lines
from .marks import Marks
from .prompt_keys import Keys, Prompt

WHAT = "kv eviction"


@dataclass(eq=False)
class Scored:
    """One layer that waits for its budget."""

    keys: Keys
    scores: Tensor  # fp32 [B, H, n]
    sparsity: list[float] | None  # per sample, where budgets depend on it


@dataclass(eq=False)
class Pending:
    """State of a step that ends a prompt."""

    cache: Any = None  # None: nothing is evicted in this step
    scored: dict[int, Scored] = field(default_factory=dict)
    index: dict[int, tuple[Tensor, Tensor | None]] = field(default_factory=dict)  # layer -> Long[B, H, k], Bool[B, k]


class Evicting(Component):
    """Evict in every layer whose cache can do without some of its keys."""

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        assert session.policy.kv is not None
        self.method: Eviction = session.policy.kv
        structure = session.structure
        self.layers = [i for i in range(len(structure.layers)) if why_whole(structure, i) is None]

    @staticmethod
    def check(model: Any, structure: ModelStructure, policy: Policy) -> None:
        reasons = [why_whole(structure, i) for i in range(len(structure.layers))]
        if policy.kv is not None and policy.evicts and None not in reasons:
            raise ValueError(
                f"{policy.kv.label}: no layer of {type(model).__name__} can do without keys: "
                f"{'; '.join(sorted({str(reason) for reason in reasons}))}"
            )

    @staticmethod
    def wanted(session: Session) -> bool:
        return session.policy.evicts

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
        if marks is not None and step.call.request.length is not None:
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
        if pending.scored:
            ratios = self.ratios(list(pending.scored.values()))
            for number, (layer, scored) in enumerate(pending.scored.items()):
                self.evict(step, pending, layer, scored, [own[number] for own in ratios])
        if pending.index:
            commit(step, max(self.session.stage_of))
            for layer, (index, valid) in pending.index.items():
                self.write_down(step, layer, index, valid)
        elif not step.call.page.slot(Evictions):
            step.call.skip(WHAT, "nothing competes: every key of the prompt is protected")

    def ratios(self, layers: list[Scored]) -> list[list[float]]:
        """Return, for every sample, the share that each layer keeps."""
        method, depth = self.method, len(layers)
        of_layers = [scored.sparsity for scored in layers]
        samples = range(len(layers[0].keys.competing))
        return [kv.ratios(method, depth, 0, [own[b] for own in of_layers if own is not None]) for b in samples]

    def evict(self, step: Step, pending: Pending, layer: int, scored: Scored, ratios: list[float]) -> None:
        """Shrink the cache of one layer."""
        keys = scored.keys
        kept = [
            min(kv.kept(all_of_them, ratio), stored - held)
            for all_of_them, ratio, stored, held in zip(keys.competing, ratios, keys.stored, keys.held, strict=True)
        ]
        counts = [own + held for own, held in zip(kept, keys.held, strict=True)]
        before, bytes_before = keys.real.shape[2], compat.layer_bytes(pending.cache, layer)
        if counts == keys.stored:  # every real key stays, and so does padding
            if any(keys.competing):
                both = Kept(layer, (before, before), (bytes_before, bytes_before), keys.competing, kept)
                step.call.page.slot(Evictions).append(both)
            return
        scores = scored.scores if self.method.per_head else scored.scores.mean(1, keepdim=True)
        index, valid = kv.choose(
            scores.to(step.device), keys.protected, keys.real, torch.tensor(counts, device=step.device)
        )
        if step.state is None:
            step.states.append(caches.adopt(pending.cache, self.session.lease))
        caches.keep_slots(pending.cache, layer, index)
        pending.index[layer] = (keys.places.expand(-1, index.shape[1], -1).gather(2, index), valid)
        slots, sizes = (before, index.shape[2]), (bytes_before, compat.layer_bytes(pending.cache, layer))
        step.call.page.slot(Evictions).append(Kept(layer, slots, sizes, keys.competing, kept))

    def write_down(self, step: Step, layer: int, places: Tensor, valid: Tensor | None) -> None:
        """Let the cache's state say what the slots of a layer are."""
        state, own = step.state, Own(self.session.stage_of[layer], layer)
        assert state is not None
        state.index[own], state.valid[own] = places[:, 0], valid
        state.heads.pop(own, None)
        if places.shape[1] > 1:
            state.heads[own] = places
        step.slot(Marks).forget(own)


class LayerEviction(AttentionPart):
    """Score and evict in one layer when the last row of a prompt has passed."""

    def __init__(self, owner: Evicting, layer: int) -> None:
        self.owner, self.layer, self.session = owner, layer, owner.session
        self.stage = owner.session.stage_of[layer]

    @torch.no_grad()
    def behind(self, step: Step, at: AttentionCall, out: Tensor) -> Tensor:
        """Score the keys, and drop some where budgets need not wait."""
        pending = step.find(Pending)
        if pending is not None and isinstance(step, PromptStep) and not step.again:
            self.read(step, pending, at)
        return out

    def read(self, step: PromptStep, pending: Pending, at: AttentionCall) -> None:
        """Score the keys that the layer attended to."""
        owner, method = self.owner, self.owner.method
        start = step.call.clock.now()
        prompt: Prompt = step.remember(("kv prompt", self.stage), None, lambda: prompt_keys.read_prompt(step, method))
        store = step.store(self.stage, self.layer)
        heads = None if step.state is None else step.state.heads.get(store)
        keys: Keys = step.remember(("kv keys", store), None, lambda: prompt_keys.read_keys(step, store, heads, prompt))
        probe = None
        if method.rows:
            probe = prompt_keys.read_rows(step, self.stage, method.rows, prompt, at)
        around = None
        if method.on_grid:
            around = step.remember(("kv around", store), None, lambda: prompt_keys.around(prompt, keys))
        device = at.key.device
        view = KVView(
            at.key,
            at.value,
            keys.real.to(device),
            prompt_keys.at(prompt.number, keys.places).to(device),
            self.layer,
            self.session.policy.seed,
            probe,
            None if around is None else around.to(device),
        )
        scored = Scored(keys, method.score(view), None)
        if method.layer_budgets == "adaptive":
            assert probe is not None
            scored.sparsity = kv.sparsity(probe).tolist()
            pending.scored[self.layer] = scored
        else:
            depth, rank = len(owner.layers), owner.layers.index(self.layer)
            ratios = [kv.ratios(method, depth, n, None)[rank] for n in keys.competing]
            owner.evict(step, pending, self.layer, scored, ratios)
        step.call.page.scoring.append((start, step.call.clock.now()))

"""What is asked of an engine: a policy that it can follow, or the reason why it cannot."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from vlmopt import Policy
from vlmopt.core import shown
from vlmopt.families import Family
from vlmopt.pruning import (
    Pixels,
    PixelScale,
    Projector,
    Selector,
    Signal,
    VisionAttention,
    VisionKeys,
    VisualEmbeds,
)

KEY = "vlmopt"
OF_PIXELS = (Pixels, PixelScale)  # the front end has them
OF_TOWER = (Projector, VisionAttention, VisionKeys)  # heard while the tower runs
BUDGETS = ("keep_ratio", "keep_tokens")
POLICY_KEYS = ("prune", "attention", "prefill", "kv", "read", "decoding", "gqa")
IN_PROCESS = "vlmopt serve MODEL --policy ... runs every policy, one request at a time"


@dataclass(frozen=True)
class Served:
    """At most one method that chooses what the tower sees, and one that chooses before the LLM."""

    text: str  # canonical JSON of the policy, with vlmopt's version
    before_tower: Any  # PixelRedundancy, or None
    selector: Selector | None
    seed: int

    @property
    def last(self) -> Selector:
        """The method whose rows the LLM gets."""
        return self.before_tower if self.selector is None else self.selector

    @property
    def late(self) -> bool:
        """The choice among the rows needs more than grid and pixels, so the worker makes it."""
        return self.selector is not None and any(not isinstance(need, OF_PIXELS) for need in self.selector.captures)

    @property
    def signals(self) -> tuple[Signal, ...]:
        """What is read of tower and projector, in the same order on all ranks: they add up one reading at a time."""
        needs = () if self.selector is None else self.selector.captures
        return tuple(sorted((need for need in needs if isinstance(need, OF_TOWER)), key=repr))

    @property
    def numbering(self) -> str:
        return self.last.numbering

    @property
    def trained(self) -> str | None:
        """Where its trained marker is; None without one."""
        return next(iter(self.last.weights), None)


@dataclass(frozen=True)
class AtStart:
    """What an engine was started with, read once: value of "vlmopt" among its mm_processor_kwargs."""

    written: Mapping[str, Any]  # as `Policy.to_dict` gives it
    policy: Served | None  # None: nothing is pruned

    @classmethod
    def of(cls, source: Any) -> AtStart:
        """Read any form of a policy, also a path; `ValueError`, `TypeError` where no engine can follow it."""
        text = canonical(source, paths=True)
        return cls(json.loads(text), served(text))

    def asked(self, request: Mapping[str, object]) -> Served | None:
        """Tell what holds for a request: what it says, over what the engine has. None: nothing is pruned.

        Args:
            request: the request's own mm_processor_kwargs. null means dense; settings without a method are laid over
                those of the engine's method.

        Raises:
            ValueError, TypeError: not a policy, or not one that an engine can follow.
        """
        if KEY not in request:
            return self.policy
        own = request[KEY]
        if isinstance(own, Mapping) and own and not any(key in own for key in ("method", *POLICY_KEYS)):
            own = overlaid(self.written, own)
        policy = served(canonical(own, paths=False))
        if policy is not None and policy.trained not in (None, self.policy.trained if self.policy else None):
            raise ValueError(
                f"marker_from={shown(policy.trained)} is not the engine's: trained markers are loaded when it starts, "
                "never on the word of a request; start it with a policy that names this one"
            )
        return policy


def canonical(source: Any, paths: bool) -> str:
    """Spell a policy as JSON in one way; null and {} are the empty policy."""
    policy = Policy() if source is None or source == {} else Policy.load(source, paths=paths)
    return json.dumps(policy.to_dict(), sort_keys=True)


def overlaid(policy: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Change the engine's policy: other settings of its last method (or another seed)."""
    if not policy["prune"]:
        raise ValueError(
            f'{KEY}={dict(settings)!r} names no method, and the engine was started without one; add "method"'
        )
    own = {key: value for key, value in settings.items() if key != "seed"}
    last = {k: v for k, v in policy["prune"][-1].items() if k not in BUDGETS or not any(b in own for b in BUDGETS)}
    return {**policy, "seed": settings.get("seed", policy["seed"]), "prune": [*policy["prune"][:-1], {**last, **own}]}


@lru_cache(maxsize=256)
def served(text: str) -> Served | None:
    """Check a canonical policy for what no engine can do; the model and the item are checked by `fits`."""
    policy = Policy.load(json.loads(text))
    if replace(policy, prune=(), seed=0) != Policy():
        raise ValueError(
            f"corrections, prefill, kv, read, decoding and gqa act inside the LLM, which vLLM runs itself; {IN_PROCESS}"
        )
    cuts = policy.active
    for cut in cuts:
        if reason := unserved(cut):
            raise ValueError(f"{cut.name}: {reason}; {IN_PROCESS}")
    if not cuts:
        return None
    before = [cut for cut in cuts if cut.before_tower]
    after = [cut for cut in cuts if not cut.before_tower]
    if before and after and "pospad" in (before[0].numbering, after[0].numbering):
        raise ValueError("positions='pospad' is served with one method alone; leave it out, or one of the two methods")
    return Served(text, before[0] if before else None, after[0] if after else None, policy.seed)


def unserved(method: Selector) -> str | None:
    """Tell why no engine can follow a selector, None if some can."""
    if method.layer:
        return f"layer={method.layer} lies inside the LLM, which vLLM runs itself"
    if method.query_aware:
        without = f"; with {method.unbound} it does not" if method.unbound else ""
        return f"it reads the question, but an engine encodes an image once for all questions{without}"
    if method.adaptive and not (method.before_tower or method.resizes_pixels):
        return "it decides how many tokens stay after the encoder, but an engine has to know before"
    if any(isinstance(n, OF_PIXELS) for n in method.needs) and not all(isinstance(n, OF_PIXELS) for n in method.needs):
        return "it reads pixels and embeddings together, which lie on two sides of an engine"
    known = (*OF_PIXELS, *OF_TOWER, VisualEmbeds)
    unknown = [need for need in method.captures if not isinstance(need, known) and not method.before_tower]
    return f"it reads {type(unknown[0]).__name__}, which an engine does not give" if unknown else None


def check_family(policy: Served, family: Family, mrope: bool) -> None:
    """Raise `ValueError` if models of this family cannot follow a policy."""
    method, name = policy.last, policy.last.name
    if mrope and policy.numbering == "repack":
        raise ValueError(f"{method.renumbering} is undefined for M-RoPE; give positions='keep' or 'pospad'")
    if not mrope and policy.numbering != "repack":
        raise ValueError(
            f"{name}: positions={policy.numbering!r} leaves gaps, but vLLM counts the positions of {family.name} token "
            "by token; give positions='repack'"
        )
    if not family.patch_grid and (policy.before_tower is not None or method.resizes_pixels):
        raise ValueError(f"{name}: the tower of {family.name} takes whole images of one size; use div_prune")
    reads = method.captures
    if not family.knows_cells and any(isinstance(need, Pixels) for need in reads):
        raise ValueError(f"{name}: the pixels under the tokens of {family.name} are not known; use div_prune")
    if not family.image_std and PixelScale() in reads:
        raise ValueError(f"{name}: by what pixels of {family.name} are divided is not known; use div_prune")


def without_padding(method: Selector) -> Selector:
    """Take the selector's look for padding away, where that has been left out already."""
    return replace(method, padding="keep") if method.padding != "keep" else method


def without_key(kwargs: Mapping[str, object] | None) -> dict[str, object]:
    return {name: value for name, value in (kwargs or {}).items() if name != KEY}

"""Drop visual tokens at the boundaries of decoder layers, as selectors choose."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from vlmopt.pruning import Selector, Signal

from ....policy import Policy
from ...call import Call, PromptStep, Session, Step
from ...captures import capture_of
from ...component import Account, Component
from ...hooks.layer import entry_of
from ...structure import ModelStructure, shared_key_source
from ...unseen import no_visual
from .boundary import Boundary
from .deepstack import DeepStack
from .record import Cuts


class Pruning(Component):
    """Cut at boundaries, and give every layer what matches the survivors."""

    on_single_rows = False

    def __init__(self, session: Session, selectors: Sequence[Selector]) -> None:
        super().__init__(session)
        self.selectors = selectors  # the k-th starts stage k

    @staticmethod
    def check(model: Any, structure: ModelStructure, policy: Policy) -> None:
        for method in policy.active:
            check_selector(model, structure, method)

    @classmethod
    def of(cls, session: Session) -> Pruning | None:
        selectors = session.policy.active
        return cls(session, selectors) if selectors else None

    def signals(self) -> set[Signal]:
        return {need for method in self.selectors for need in method.captures}

    def install(self) -> None:
        session, structure = self.session, self.session.structure
        for layer in range(len(structure.layers)):
            entry = entry_of(session, layer)  # also where nothing leaves, for what earlier layers dropped
            if layer in session.stages.cuts:
                entry.parts.append(Boundary(session, layer, self.selectors))
        if hasattr(structure.decoder, "_deepstack_process"):
            DeepStack(session).put()

    def open_step(self, step: Step, cache: Any) -> None:
        """Prepare signals; warn of a cache that cannot shrink, and of one that was pruned for an earlier question."""
        if not isinstance(step, PromptStep):
            return
        for need in self.signals() if step.context is not None else ():
            capture_of(need).open_step(step, need)
        if step.context is not None and step.fixed is not None:
            step.call.skip("pruning", step.fixed)
            warnings.warn(step.fixed, stacklevel=2)
        if step.state is None or not step.past or step.past != step.call.progress.began or step.q == 1:
            return
        bound = sorted({method.name for method in self.selectors if method.query_aware})
        if bound:
            why = (
                f"{', '.join(bound)} chose the cached visual tokens for an earlier question; for several turns use a "
                "method that does not read the question (div_prune, zeroth_order, vision_zip, uniform), or a new cache"
            )
            step.call.skip("choosing anew for this turn", why)
            warnings.warn(why, stacklevel=2)

    def report(self, call: Call) -> Account:
        """Report what each selector dropped, and where."""
        entries, lines, once = [], [], call.once
        for method in self.selectors:
            cuts = [cut for cut in call.page.slot(Cuts) if cut.layer == method.layer and cut.method == method.name]
            if cuts:
                before, after = sum(int(c.before[once].sum()) for c in cuts), sum(int(c.keep[once].sum()) for c in cuts)
                place = {"method": method.name, "layer": method.layer, "positions": method.numbering}
                entries.append(place | {"before": before, "after": after, "source": method.source})
                text = f"applied  {method.name} before layer {method.layer} ({method.numbering}): {before} -> {after} "
                lines.append(text + (f"tokens; {method.source}" if method.source else "tokens"))
        nothing = not call.page.contexts and "pruning" not in call.ledger.skipped
        return Account({"applied": entries}, lines, {"pruning": no_visual(call)} if nothing else {})


def check_selector(model: Any, structure: ModelStructure, method: Selector) -> None:
    """Refuse a boundary, positions or signals that this model does not have."""
    depth, name = len(structure.layers), method.name
    if method.layer >= depth:
        raise ValueError(
            f"{name}: layer={method.layer} does not exist; {type(model).__name__} has layers 0..{depth - 1}"
        )
    shared = [s for i in range(depth) if (s := shared_key_source(structure.attentions, i)) is not None]
    if shared and method.layer > min(shared):
        raise ValueError(
            f"{name}: layer={method.layer} lies behind layer {min(shared)}, whose keys later layers of "
            f"{type(model).__name__} share; use layer <= {min(shared)}"
        )
    if method.numbering == "repack" and structure.mrope:
        raise ValueError(
            f"{method.renumbering} is undefined for the multi-axis positions of {type(model).__name__}; "
            "give positions='keep' or 'pospad'"
        )
    if method.numbering == "repack" and not hasattr(structure.decoder, "rotary_emb"):
        raise ValueError(
            f"{method.renumbering} needs a rotary position module; {type(structure.decoder).__name__} has none. "
            "Give positions='keep'."
        )
    if method.numbering == "pospad" and method.marker == "trained" and hasattr(structure.config, "altup_num_inputs"):
        raise ValueError(
            f"{name}: marker='trained' is one embedding, while layers of {type(model).__name__} are handed several of "
            "each token; use marker='mean' or 'last'"
        )
    for need in sorted(method.captures, key=repr):
        capture_of(need).check(model, structure, method, need)

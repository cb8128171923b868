"""Run all corrections of one optimized model: where they are installed, and what they are told when a step begins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vlmopt.attention_fix import Correction, Diagnosis, Residual, Tower
from vlmopt.core import Signal

from ....policy import Policy
from ...call import Call, PromptStep, Session, Step
from ...captures import capture_of
from ...captures.residual import ENTERING
from ...component import Account, Component, LayerPart
from ...context import VisualContext
from ...hooks.attention import plan_of
from ...hooks.layer import entry_of
from ...place import Place
from ...points import LayerInput
from ...structure import ModelStructure
from ...unseen import no_visual
from ..marks import FOREIGN, Marks
from .check import by_layer, check_correction, why_not
from .layer import LayerCorrections, Records
from .report import corrected, lines


class Corrections(Component):
    """All corrections of a session."""

    def __init__(self, session: Session, active: Sequence[Correction]) -> None:
        super().__init__(session)
        self.active = active
        self.editing = [c for c in active if not isinstance(c, Diagnosis)]
        self.needs = frozenset[Signal]().union(*(c.needs for c in active))

    @classmethod
    def of(cls, session: Session) -> Corrections | None:
        active = session.policy.corrections
        return cls(session, active) if active else None

    @staticmethod
    def check(model: Any, structure: ModelStructure, policy: Policy) -> None:
        for correction in policy.corrections:
            check_correction(model, structure, correction)

    def signals(self) -> set[Signal]:
        """Return what corrections are told beside attention."""
        return set(self.needs)

    def install(self) -> None:
        session = self.session
        for layer, corrections in by_layer(session.structure, session.policy).items():
            plan_of(session, layer).parts.append(LayerCorrections(session, layer, corrections))
            marking = [c for c in corrections if Residual() in c.needs]
            if marking:
                entry_of(session, layer).parts.append(ByResidual(session, marking))

    def open_step(self, step: Step, cache: Any) -> None:
        """Begin a decoder pass: what needs all rows asks for them, and the tower's choices are marked."""
        marks = step.find(Marks)
        if marks is None:
            step.call.skip("corrections", FOREIGN)
        elif isinstance(step, PromptStep):
            for need in self.needs:
                capture_of(need).open_step(step, need)
            if step.context is not None:
                self.ask_tower(step, step.context, marks)

    def ask_tower(self, step: PromptStep, context: VisualContext, marks: Marks) -> None:
        """Let corrections choose among the tokens of every image by what the tower attended to."""
        for correction in self.active:
            needs = sorted((need for need in correction.needs if isinstance(need, Tower)), key=repr)
            tables: dict[str, Tensor] = {}
            for sample in range(step.batch if needs else 0):
                logical = context.visual[sample].nonzero()[:, 0]
                at = Place(self.session, step, context, sample, logical, logical, step.current(0), step.embeds)
                images = [capture_of(need).read(need, at) for need in needs]
                for of_blocks in zip(*images, strict=True):
                    values = {need.block: one.values for need, one in zip(needs, of_blocks, strict=True)}
                    one = of_blocks[0]
                    for name, chose in correction.choose(values).items():
                        table = tables.setdefault(name, torch.zeros_like(context.visual))
                        table[sample, one.index] = chose[one.inside.to(chose.device)].to(table.device)
            for name, table in tables.items():
                marks.append(name, None, table.to(step.device), step.past)

    def report(self, call: Call) -> Account:
        """Report what each correction changed."""
        entries, skipped = corrected(call, self.active), self.skipped()
        ran = {name for name, _ in call.slot(Records)}
        missed = self.editing and not ran.intersection(c.name for c in self.editing)
        if missed and not call.page.contexts and "corrections" not in call.ledger.skipped:
            skipped["corrections"] = no_visual(call)
        return Account({"corrections": entries}, lines(entries), skipped)

    def skipped(self) -> dict[str, str]:
        """Return the layers a correction asks for and cannot have, with the reason."""
        structure, found = self.session.structure, {}
        for correction in self.editing:
            for layer in sorted(correction.at(len(structure.layers))):
                if (reason := why_not(structure.attentions[layer])) is not None:
                    found[f"{correction.name} in layer {layer}"] = reason
        return found


class ByResidual(LayerPart):
    """Let corrections mark tokens of the prompt by the residual stream, behind the cuts before a layer."""

    def __init__(self, session: Session, corrections: Sequence[Correction]) -> None:
        self.session, self.corrections = session, corrections

    def at_layer(self, step: PromptStep, at: LayerInput) -> None:
        """Mark what is real and belongs to the prompt."""
        marks = step.find(Marks)
        if marks is None:
            return
        stream = ENTERING.stream(step, self.session.stages.of(at.layer), at)
        for correction in self.corrections:
            for name, marked in correction.mark(stream.hidden).items():
                marks.append(name, at.layer, stream.at_places(marked, step.q).to(step.device), step.past)

"""Run all corrections of one optimized model: where they are installed, and what they are told when a step begins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vlmopt.attention_fix import Correction, Diagnosis, HeadCorrection, Residual, TextOnly, Tower, repetitive
from vlmopt.attention_fix.vision_heads import token_divergence
from vlmopt.core import Signal

from ...policy import Policy
from ..call import Call, PromptStep, Session, Step
from ..captures import capture_of
from ..captures.place import Place
from ..captures.residual import ENTERING
from ..captures.text_only import TextStream
from ..component import Account, Component, LayerPart
from ..hooks.attention import plan_of
from ..hooks.layer import entry_of
from ..points import LayerInput
from ..structure import ModelStructure
from ..unseen import no_visual
from .correction_check import check_correction, why_not
from .correction_report import corrected, lines
from .guidance import method_of
from .layer_corrections import Divergence, LayerCorrections, Records, Repeating
from .marks import Marks, keep_marks, marks_of
from .sparse_prefill import sparse_of

WINDOW = 128  # generated tokens that a watchdog looks at


class Corrections(Component):
    """All corrections of a session; a sparse prefill asks for it alone, for its marks."""

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        depth = len(session.structure.layers)
        self.active: list[Correction] = session.policy.corrections
        self.editing = [c for c in self.active if not isinstance(c, Diagnosis)]
        at = {c.name: c.at(depth) for c in self.editing}
        self.layers = {
            layer: [c for c in self.editing if layer in at[c.name]]
            for layer in sorted(frozenset().union(*at.values()))
            if why_not(session.structure.attentions[layer]) is None
        }
        self.needs = frozenset[Signal]().union(*(c.needs for c in self.active))
        towers = {c: sorted((n for n in c.needs if isinstance(n, Tower)), key=repr) for c in self.active}
        self.towers = {c: needs for c, needs in towers.items() if needs}
        self.guided = method_of(session) is not None
        self.traced: Any = next((c for c in self.active if getattr(c, "trace", None)), None)
        self.watching = any(getattr(c, "watchdog", "off") != "off" for c in self.active)
        of_heads = [layer for layer, found in self.layers.items() if any(isinstance(c, HeadCorrection) for c in found)]
        self.scaling = frozenset(of_heads)
        self.streams = bool(self.guided or self.traced or TextOnly() in self.needs)
        config = session.model.generation_config
        ends = [config.pad_token_id, config.eos_token_id]
        self.ends = [i for end in ends if end is not None for i in (end if isinstance(end, list) else [end])]

    def install(self) -> None:
        session = self.session
        for layer, corrections in self.layers.items():
            plan_of(session, layer).parts.append(LayerCorrections(session, layer, corrections))
            marking = [c for c in corrections if Residual() in c.needs]
            if marking:
                entry_of(session, layer).parts.append(Marking(session, marking))

    @staticmethod
    def check(model: Any, structure: ModelStructure, policy: Policy) -> None:
        for correction in policy.corrections:
            check_correction(model, structure, correction)

    @staticmethod
    def wanted(session: Session) -> bool:
        """Return whether there are any, or sparse prefills and evictions, which read its marks."""
        policy = session.policy
        return bool(policy.corrections) or sparse_of(policy) is not None or policy.evicts

    def signals(self) -> set[Signal]:
        """Return what corrections are told beside attention."""
        return set(self.needs)

    def skipped(self) -> dict[str, str]:
        """Return the layers a correction asks for and cannot have, with the reason."""
        structure, found = self.session.structure, {}
        for correction in self.editing:
            for layer in sorted(correction.at(len(structure.layers))):
                if (reason := why_not(structure.attentions[layer])) is not None:
                    found[f"{correction.name} in layer {layer}"] = reason
        return found

    def open_step(self, step: Step, cache: Any) -> None:
        """Begin a decoder pass: marks, the tower's choices, the stream without images, the watchdog."""
        call = step.call
        call.drop(Marks)
        marks = marks_of(cache, step.batch, step.past, self.session.serial)
        if marks is None:
            call.skip(
                "corrections",
                "the cache was filled before the model was optimized, or optimized like this; start the sequence anew",
            )
            return
        step.put(marks)
        call.put(marks)
        if isinstance(step, PromptStep):
            for need in self.needs:
                capture_of(need).open_step(step, need)
            marks.open(step)
            self.ask_tower(step, marks)
        if self.streams:
            traced = bool(self.traced) and call.request.branches is None
            if self.traced and call.request.branches is not None:
                call.skip(
                    f"trace of {self.traced.name}",
                    f"{call.request.branches}: the second stream goes along with one text",
                )
            marks.stream = marks.stream or TextStream(bool(self.guided or traced), self.scaling)
            marks.stream.take(step)
            if marks.has_image:
                self.go_along(step, marks.stream)
        if self.watching:
            self.watch(step, step.arguments.input_ids)

    def go_along(self, step: Step, stream: TextStream) -> None:
        """Run the text beside the prompt's last row, and beside every generated one where the stream lasts."""
        if not isinstance(step, PromptStep):
            if stream.lasting:
                stream.token(step)
        elif step.ends_prompt and (stream.lasting or not step.once_more):  # else heads were chosen in the first pass
            start = step.call.clock.now()
            stream.prompt(step)
            step.call.page.scoring.append((start, step.call.clock.now()))

    def ask_tower(self, step: PromptStep, marks: Marks) -> None:
        """Let corrections choose among the tokens of every image by what the tower attended to."""
        context = step.context
        if context is None:
            return
        for correction, needs in self.towers.items():
            tables: dict[str, Tensor] = {}
            for sample in range(step.batch):
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

    def watch(self, step: Step, ids: Tensor | None) -> None:
        """Find which samples have begun to repeat themselves; finished ones are not looked at."""
        call, end = step.call, step.call.request.length
        if ids is None or end is None:
            return
        if call.request.branches == "beams":
            call.skip("watchdog", "beams: texts change places while they are written")
            return
        known = call.slot(Repeating)
        if not isinstance(
            step, PromptStep
        ):  # behind the first come candidates of assisted decoding, which may be rejected
            earlier = ids[:, :0] if known.generated is None else known.generated[:, : step.past - end]
            text = torch.cat([earlier, ids[:, :1]], 1)
            known.generated = torch.cat([earlier, ids], 1)
        else:  # without a cache every step brings the whole text
            known.generated = ids[:, max(end - step.past, 0) :]
            text = known.generated if call.first_token is not None else ids[:, :0]
        if not text.shape[1]:
            return
        running = ~torch.isin(text[:, -1], text.new_tensor(self.ends))
        now = repetitive(text, WINDOW) & running
        known.tripped = now if known.tripped is None else known.tripped.to(now.device) | now

    def close_step(self, step: Step, cache: Any) -> None:
        """End the pass: its marks stay with the cache."""
        keep_marks(cache, step.find(Marks))
        divergence = step.slot(Divergence)
        if divergence and step.call.request.branches is None:
            step.call.slot(Divergence).append(token_divergence(divergence, self.traced.trace_heads))

    def close_call(self, call: Call) -> None:
        """Drop the marks; the cache holds them."""
        call.drop(Marks)

    def report(self, call: Call) -> Account:
        """Report what each correction changed, and what its watch over the text found."""
        entries, tripped, divergence = corrected(call, self.active), call.slot(Repeating).tripped, call.slot(Divergence)
        repeating = None if tripped is None else tripped.nonzero()[:, 0].tolist()
        told = lines(entries)
        if repeating:
            told.append(f"warning  the text repeats itself in samples {', '.join(map(str, repeating))}")
        skipped, ran = self.skipped(), {name for name, _ in call.slot(Records)}
        missed = self.editing and not ran.intersection(c.name for c in self.editing)
        if missed and not call.page.contexts and "corrections" not in call.skipped:
            skipped["corrections"] = no_visual(call)
        traced = torch.stack(list(divergence), 1).tolist() if divergence else None
        return Account({"corrections": entries, "repeating": repeating, "token_divergence": traced}, told, skipped)


class Marking(LayerPart):
    """Let corrections mark tokens of the prompt by the residual stream, behind the cuts before a layer."""

    def __init__(self, session: Session, corrections: Sequence[Correction]) -> None:
        self.session, self.corrections = session, corrections

    def at_layer(self, step: PromptStep, at: LayerInput) -> None:
        """Mark what is real and belongs to the prompt."""
        marks = step.find(Marks)
        if marks is None:
            return
        stream = ENTERING.stream(step, self.session.stage_of[at.layer], at)
        for correction in self.corrections:
            for name, marked in correction.mark(stream.hidden).items():
                marks.append(name, at.layer, stream.at_places(marked, step.q).to(step.device), step.past)

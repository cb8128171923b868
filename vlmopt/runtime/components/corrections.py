"""All corrections of one optimized model: where they are installed, and what they are told when a step begins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vlmopt.attention_fix import Correction, Diagnosis, HeadCorrection, Residual, TextOnly, Tower, repetitive
from vlmopt.attention_fix.vision_heads import token_divergence
from vlmopt.pruning import Signal, VisionAttention

from ...policy import Policy
from ..call import Call, Component, Session, Step
from ..captures import capture_of
from ..captures.place import Place
from ..captures.tower import whole_picture
from ..compat import every_row
from ..hooks import attention
from ..places import decoding, last_row_passes, once_more, prompt_places
from ..structure import ModelStructure
from .correctable import check_correction, why_not
from .guidance import method_of
from .layer_corrections import Divergence, LayerCorrections, Repeating
from .marks import Marks, keep_marks, marks_of
from .sparse_prefill import sparse_of
from .text_stream import TextStream

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
        self.towers = {c: [n for n in c.needs if isinstance(n, Tower)] for c in self.active}
        self.guided = method_of(session) is not None
        self.traced: Any = next((c for c in self.active if getattr(c, "trace", None)), None)
        self.marking = any(Residual() in c.needs for c in self.editing)
        self.watching = any(getattr(c, "watchdog", "off") != "off" for c in self.active)
        self.streams = bool(self.guided or self.traced or any(TextOnly() in c.needs for c in self.active))
        config = session.model.generation_config
        ends = [config.pad_token_id, config.eos_token_id]
        self.ends = [i for end in ends if end is not None for i in (end if isinstance(end, list) else [end])]

    def install(self) -> None:
        session = self.session
        for layer, corrections in self.layers.items():
            plan = attention.plan_of(session, layer)
            plan.edits = LayerCorrections(session, layer, corrections)
            plan.heads = self.streams and any(isinstance(c, HeadCorrection) for c in corrections)
            marking = [c for c in corrections if Residual() in c.needs]
            if marking:
                hook = ResidualHook(session, layer, marking)
                session.hook(session.structure.layers[layer].register_forward_pre_hook(hook, with_kwargs=True))

    @staticmethod
    def check(model: Any, structure: ModelStructure, policy: Policy) -> None:
        for correction in policy.corrections:
            check_correction(model, structure, correction)

    @staticmethod
    def wanted(session: Session) -> bool:
        """Sparse prefills and evictions read its marks."""
        policy = session.policy
        return bool(policy.corrections) or sparse_of(policy) is not None or policy.evicts

    def signals(self) -> set[Signal]:
        """What has to be read inside the vision tower."""
        return {VisionAttention(need.block) for needs in self.towers.values() for need in needs}

    def skipped(self) -> dict[str, str]:
        """Layers a correction asks for and cannot have, with the reason."""
        structure, found = self.session.structure, {}
        for correction in self.editing:
            for layer in sorted(correction.at(len(structure.layers))):
                if (reason := why_not(structure.attentions[layer])) is not None:
                    found[f"{correction.name} in layer {layer}"] = reason
        return found

    def open_step(self, step: Step, cache: Any) -> None:
        """A decoder pass begins: marks, the tower's choices, the stream without pictures, the watchdog."""
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
        if self.marking:
            every_row(step.given)
        if not decoding(step):
            marks.open(step)
            self.ask_tower(step, marks)
        if self.streams:
            traced = bool(self.traced) and call.request.branches is None
            if self.traced and call.request.branches is not None:
                call.skip(
                    f"trace of {self.traced.name}",
                    f"{call.request.branches}: the second stream goes along with one text",
                )
            marks.stream = marks.stream or TextStream(bool(self.guided or traced))
            marks.stream.take(step)
            if marks.has_image:
                self.go_along(step, marks.stream)
        if self.watching:
            self.watch(step, step.arguments.input_ids)

    def go_along(self, step: Step, stream: TextStream) -> None:
        start = step.call.clock.now()
        if once_more(step) and not stream.lasting:
            return  # heads were chosen in the first pass
        if last_row_passes(step):
            stream.prompt(step)
            step.call.page.scoring.append((start, step.call.clock.now()))
        elif decoding(step) and stream.lasting:
            stream.token(step)

    def ask_tower(self, step: Step, marks: Marks) -> None:
        """Let corrections choose among the tokens of every picture by what the tower attended to."""
        context = step.context
        if context is None:
            return
        for correction, needs in self.towers.items():
            if not needs:
                continue
            tables: dict[str, Tensor] = {}
            for row in range(step.batch):
                logical = context.visual[row].nonzero()[:, 0]
                place = Place(self.session, step, row, logical, logical, step.embeds)
                values = {
                    n.block: capture_of(VisionAttention(n.block)).read(VisionAttention(n.block), place) for n in needs
                }
                parts = [part for part in context.parts if part.whole.row == row]
                for part in parts:
                    whole = {block: whole_picture(VisionAttention(block), place, part) for block in values}
                    for name, chose in correction.choose(whole).items():
                        table = tables.setdefault(name, torch.zeros_like(context.visual))
                        table[row, part.index] = chose[part.inside.to(chose.device)].to(table.device)
                if parts:
                    continue
                number = torch.full((step.q,), -1, device=logical.device).scatter_(
                    0, logical, torch.arange(len(logical), device=logical.device)
                )
                for span in (s for s in context.spans if s.row == row):
                    index = span.index.to(logical.device)
                    chosen = correction.choose({block: v[number[index].to(v.device)] for block, v in values.items()})
                    for name, chose in chosen.items():
                        table = tables.setdefault(name, torch.zeros_like(context.visual))
                        table[row, index] = chose.to(table.device)
            for name, table in tables.items():
                marks.append(name, None, table.to(step.device), step.past)

    def watch(self, step: Step, ids: Tensor | None) -> None:
        """Which samples have begun to repeat themselves; finished ones are not looked at."""
        call, end = step.call, step.call.request.length
        if ids is None or end is None:
            return
        if call.request.branches == "beams":
            call.skip("watchdog", "beams: texts change places while they are written")
            return
        known = call.slot(Repeating)
        if decoding(step):  # behind the first come candidates of assisted decoding, which may be rejected
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
        """The pass is over: its marks stay with the cache."""
        keep_marks(cache, step.find(Marks))
        divergence = step.slot(Divergence)
        if divergence and step.call.request.branches is None:
            step.call.slot(Divergence).append(token_divergence(divergence, self.traced.trace_heads))

    def close_call(self, call: Call) -> None:
        """The cache holds the marks."""
        call.drop(Marks)


class ResidualHook:
    """Forward pre-hook of a decoder layer, behind the one that cuts: lets corrections mark tokens of the prompt."""

    def __init__(self, session: Session, layer: int, corrections: Sequence[Correction]) -> None:
        self.session, self.layer, self.corrections = session, layer, corrections

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        step = self.session.running_step()
        if step is None or step.side is not None or decoding(step):
            return
        marks = step.find(Marks)
        if marks is None:
            return
        hidden = args[0] if args else kwargs["hidden_states"]
        rows = step.current(self.session.stage_of[self.layer])
        logical = rows.log[:, -hidden.shape[1] :].to(hidden.device)
        prompt = prompt_places(step, hidden.device)
        real = prompt.gather(1, logical)
        if rows.valid is not None:
            real = real & rows.valid[:, -hidden.shape[1] :].to(hidden.device)
        for correction in self.corrections:
            for name, marked in correction.mark(hidden).items():
                places = torch.zeros_like(prompt).scatter_(1, logical, marked & real)
                marks.append(name, self.layer, places.to(step.device), step.past)

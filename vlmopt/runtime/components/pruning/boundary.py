"""The boundary of a decoder layer at which tokens leave: selectors choose, hidden states are gathered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from vlmopt.pruning import Selector, pack

from ... import masks
from ...cache import adopted
from ...call import PromptStep, Session
from ...captures import capture_of
from ...component import LayerPart
from ...context import Rows, VisualContext
from ...fitting import Fitting
from ...points import LayerInput
from .overwrite import write_markers, write_merged
from .record import Choice, Choices, Cut, Cuts, Following, Overwritten, at_places
from .selection import choose


@dataclass(frozen=True)
class CutHere:
    """One selector that acts before a layer, and the stage that it starts."""

    selector: Selector
    stage: int
    before: Fitting  # this layer as the stage before the cut would run it
    joins: bool  # the next cut at this boundary drops what this one does, so that its markers stand for both


class Boundary(LayerPart):
    """All cuts before one decoder layer, in the policy's order."""

    def __init__(self, session: Session, layer: int, selectors: Sequence[Selector]) -> None:
        self.session = session
        self.cuts: list[CutHere] = []
        for stage, selector in enumerate(selectors, 1):
            if selector.layer == layer:
                following = selectors[stage : stage + 1]
                joins = any(other.layer == layer and other.numbering == "pospad" for other in following)
                self.cuts.append(CutHere(selector, stage, Fitting(session, layer, stage - 1), joins))

    def at_layer(self, step: PromptStep, at: LayerInput) -> None:
        """Cut the hidden states; the step and the cache learn which rows are left."""
        following = step.call.find(Following)
        if step.context is None or step.fixed is not None or (following is not None and not following.choices):
            return
        cuts: list[Cut] = []
        for here in self.cuts:
            for need in here.selector.captures if following is None else ():
                capture_of(need).before_cut(step, step.context, need, at, here.before)
            with step.call.ledger.timed(step.call.page.scoring):
                self.cut(step, step.context, here, at, cuts)
                for need in here.selector.captures:
                    capture_of(need).behind_cut(step, need)
        step.call.page.slot(Cuts).extend(cuts)

    def choice(self, step: PromptStep, context: VisualContext, here: CutHere, at: LayerInput, before: Rows) -> Choice:
        """Return what the selector chooses, or what was chosen in the pass that this one follows."""
        following, followed = step.call.find(Following), step.call.find(Choices)
        if following is not None:
            choice = following.choices[here.stage]
            if choice.written:
                raise ValueError(f"{here.selector.label} writes merged tokens, which a second stream cannot follow")
            return choice
        choice = choose(self.session, step, context, here.selector, before, at.hidden)
        if followed is not None:
            followed[here.stage] = choice
        return choice

    def cut(self, step: PromptStep, context: VisualContext, here: CutHere, at: LayerInput, cuts: list[Cut]) -> None:
        """Run one selector, gather the rows that stay, and append what was done to `cuts`, those of this boundary."""
        before, overwritten = step.current(here.stage - 1), step.slot(Overwritten)
        choice = self.choice(step, context, here, at, before)
        overwritten.left = None
        merged = markers = None
        if choice.changes and not here.joins:
            content = staying(context, before, choice)
            if choice.written:
                merged = write_merged(step, context, at, choice, before)
            if here.selector.numbering == "pospad":
                ends = write_markers(self.session, step, context, at, choice, here.selector, before)
                content, markers = content | ends, at_places(context, before, ends)
            index, valid = pack(content)
            step.rows[here.stage] = Rows(before.log.gather(1, index), valid)
            if at.cache is not None:
                adopted(step, at.cache, self.session.lease)
            at.hidden = masks.take_rows(at.hidden, index)
        else:  # nothing to drop, or not yet: the rows of the stage before go on
            if choice.changes:
                overwritten.left = at_places(context, before, choice.dropped)
            if here.stage - 1 in step.rows:
                step.rows[here.stage] = before
        if choice.offered is not None:
            cuts.append(
                Cut(
                    chunk=len(step.call.page.contexts) - 1,
                    layer=here.selector.layer,
                    method=here.selector.name,
                    keep=at_places(context, before, choice.offered & choice.content),
                    before=at_places(context, before, choice.offered),
                    answers=choice.answers,
                    markers=markers,
                    written=merged,
                )
            )
        elif markers is not None:  # it could not choose, and marked what the cut before had left to it
            cuts[-1] = replace(cuts[-1], markers=markers)


def staying(context: VisualContext, before: Rows, choice: Choice) -> Tensor:
    """Return Bool[B, W]: rows that go on, padding that `generate` reads among them."""
    content = choice.content
    if before.valid is not None:
        content = content & before.valid
    if context.attention_mask2d is not None:
        content = content & context.attention_mask2d.gather(1, before.log)
    return content if context.read is None else content | context.read.gather(1, before.log)

"""Watch the text while it is written: which samples have begun to repeat themselves."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vlmopt.attention_fix.watchdog import Watched, repetitive

from ..call import Call, PromptStep, Session, Step
from ..component import Account, Component
from .marks import Marks

WINDOW = 128  # generated tokens that are looked at


@dataclass(eq=False)
class Repeating:
    """State of a call, where a method watches its text."""

    generated: Tensor | None = None  # Long[B, n] of this call; candidates of assisted decoding at its end
    tripped: Tensor | None = None  # Bool[B] samples whose text began to repeat itself


class Watchdog(Component):
    """Look at every step; corrections that stop for it ask `Repeating`."""

    @classmethod
    def of(cls, session: Session) -> Watchdog | None:
        watched = any(isinstance(c, Watched) and c.watchdog != "off" for c in session.policy.corrections)
        return cls(session) if watched else None

    def open_step(self, step: Step, cache: object) -> None:
        """Find which samples have begun to repeat themselves; finished ones are not looked at."""
        call, ids, end = step.call, step.arguments.input_ids, step.call.request.length
        if ids is None or end is None or step.find(Marks) is None:
            return
        if call.request.branches == "beams":
            call.skip("watchdog", "beams: texts change places while they are written")
            return
        known = call.slot(Repeating)
        if isinstance(step, PromptStep):  # without a cache every step brings the whole text
            known.generated = ids[:, max(end - step.past, 0) :]
            text = known.generated if call.ledger.first_token is not None else ids[:, :0]
        else:  # behind the first row come candidates of assisted decoding, which may be rejected
            earlier = ids[:, :0] if known.generated is None else known.generated[:, : step.past - end]
            text = torch.cat([earlier, ids[:, :1]], 1)
            known.generated = torch.cat([earlier, ids], 1)
        if not text.shape[1]:
            return
        running = ~torch.isin(text[:, -1], text.new_tensor(call.request.ends))
        now = repetitive(text, WINDOW) & running
        known.tripped = now if known.tripped is None else known.tripped.to(now.device) | now

    def report(self, call: Call) -> Account:
        """Report the samples whose text repeats itself."""
        tripped = call.slot(Repeating).tripped
        if tripped is None:
            return Account()
        found = tripped.nonzero()[:, 0].tolist()
        line = f"warning  the text repeats itself in samples {', '.join(map(str, found))}"
        return Account({"repeating": found}, [line] if found else [])

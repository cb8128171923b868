"""At the model with the head: labels come in, logits go out."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from ..arguments import brings_pixels, by_name
from ..call import Call, Generation, Session
from ..component import Components
from ..unseen import refuse_unreached
from .compiled import passes
from .stand_in import StandIn

IGNORED = -100  # a label that no loss counts


@dataclass(eq=False)
class Asked:
    """A forward of the model with the head, on its way to the outer model."""

    session: Session
    targets: Tensor | None  # Bool[B, L], rows whose next token is a label; None without labels
    call: Call | None = None  # in which the outer model was reached
    ids: Tensor | None = None  # Long[B, L] of a model that merges images itself, and hands embeddings on


ASKED: ContextVar[Asked | None] = ContextVar("vlmopt_asked", default=None)


class Head(StandIn):
    """`forward` of a model with a head: only there are labels known, and when the first logits exist."""

    def __init__(self, session: Session, module: nn.Module) -> None:
        super().__init__(session, module, "forward")
        self.__signature__ = inspect.signature(self.original)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        session = self.session
        if not session.lease.alive:
            return self.original(*args, **kwargs)
        given = by_name(self.__signature__, *args, **kwargs) if args else kwargs
        if passes(session, given, given.get("input_ids")):
            return self.original(*args, **kwargs)
        around = ASKED.get()  # by a model around a bare one
        asked = Asked(session, targets_of(given), ids=None if around is None else around.ids)
        before = ASKED.set(asked)
        try:
            out = self.original(*args, **kwargs)
        finally:
            ASKED.reset(before)
            if around is not None and around.session is session:
                around.call = around.call or asked.call
        if asked.call is None and brings_pixels(given):
            refuse_unreached(session, given.get("input_ids"))
        call = session.running_call()
        if not isinstance(call, Generation) or asked.call not in (None, call):  # of another sequence, such as guidance
            return out
        if around is None:
            for component in session.slot(Components):
                component.behind_head(call, self, given, out)
        if call.progress.prompt_done and call.ledger.first_token is None:
            call.ledger.close_prompt()
        return out


def targets_of(given: Mapping[str, Any]) -> Tensor | None:
    """Return Bool[B, L]: rows whose next token counts in the loss, from `labels` or `shift_labels` of a call.

    Labels belong to the logits, which `logits_to_keep` may ask for at a part of the rows.
    """
    labels, shifted = given.get("labels"), given.get("shift_labels")
    asked, rows = (labels if shifted is None else shifted), given.get("input_ids")
    rows = given.get("inputs_embeds") if rows is None else rows
    if asked is None or rows is None:
        return None
    kept = given.get("logits_to_keep", 0)
    columns = torch.arange(rows.shape[1], device=asked.device)[slice(-kept, None) if isinstance(kept, int) else kept]
    if asked.shape != (rows.shape[0], len(columns)):
        raise ValueError(
            f"{'labels' if shifted is None else 'shift_labels'} must have the shape of the logits, "
            f"{(rows.shape[0], len(columns))}, got {tuple(asked.shape)}: one label a token, {IGNORED} where none counts"
        )
    counts = asked != IGNORED
    counts = pad(counts[:, 1:], (0, 1)) if shifted is None else counts
    return counts.new_zeros(rows.shape[:2]).index_copy_(1, columns, counts)

"""Around a model that embeds rows for late interaction: its ids are made known, and dropped rows embed as zeros."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from ..arguments import brings_pixels, by_name
from ..call import Session
from .head import ASKED, Asked
from .stand_in import StandIn


class Retrieval(StandIn):
    """`forward` of ColPali, ColQwen2 and the like.

    Scores are sums over the rows of a page, and a projection with a bias makes something of rows of zeros.
    """

    def __init__(self, session: Session, model: nn.Module) -> None:
        super().__init__(session, model, "forward")
        self.__signature__ = inspect.signature(self.original)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        session = self.session
        if not session.lease.alive:
            return self.original(*args, **kwargs)
        given = by_name(self.__signature__, *args, **kwargs)
        ids = given.get("input_ids") if brings_pixels(given) else None
        asked = Asked(session, None, ids=ids)
        before = ASKED.set(asked)
        try:
            out = self.original(*args, **kwargs)
        finally:
            ASKED.reset(before)
        name = "embeddings" if hasattr(out, "embeddings") else 0  # a tuple was asked for
        if asked.call is not None:  # not the last call of the session: another thread may have had one since
            rows = asked.call.page.rows_left()[..., None]
            zeroed = out[name].masked_fill(~rows.to(out[name].device), 0)
            if isinstance(out, tuple):
                return (zeroed, *out[1:])
            out[name] = zeroed
        return out

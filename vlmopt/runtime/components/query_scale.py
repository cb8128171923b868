"""Llama 4 scales the queries of layers without rotation by their place; behind a cut, by the place they had before it.

Its attention counts the rows it is handed, which a cut has moved together.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..cache import Moved
from ..call import Session
from ..component import Component


class QueryScale(Component):
    """Correct the output of the query projections of such layers."""

    @classmethod
    def of(cls, session: Session) -> Component | None:
        return cls(session) if any(map(tuned, cut_attentions(session).values())) else None

    def install(self) -> None:
        for layer, module in cut_attentions(self.session).items():
            if tuned(module):
                self.session.hook(module.q_proj.register_forward_hook(Scaled(self.session, layer, module)))


class Scaled:
    """Forward hook of a query projection."""

    def __init__(self, session: Session, layer: int, attention: Any) -> None:
        self.session, self.stage, self.attention = session, session.stages.of(layer), attention

    def __call__(self, module: nn.Module, args: tuple[Any, ...], queries: Tensor) -> Tensor | None:
        """Return queries [B, W, H * D] that become right where the attention goes on to scale by W places in a row."""
        step = self.session.running_step()
        if step is None:
            return None
        rows, places = step.rows.get(self.stage), step.slot(Moved).positions.get(self.stage)
        if places is None:
            if rows is None:
                return None
            places = rows.log + step.past
        counted = torch.arange(queries.shape[1], device=queries.device) + step.past
        change = self.scale(places.to(queries.device)) / self.scale(counted)
        return (queries * change[..., None]).to(queries.dtype)

    def scale(self, places: Tensor) -> Tensor:
        """Return the factor of queries at logical places, fp32 (Llama4TextAttention)."""
        of = self.attention
        factor: Tensor = torch.log1p(torch.floor((places.float() + 1) / of.floor_scale)) * of.attn_scale + 1
        return factor


def tuned(module: Any) -> bool:
    return bool(getattr(module, "attn_temperature_tuning", False)) and not module.use_rope


def cut_attentions(session: Session) -> dict[int, Any]:
    """Return the attention modules behind the first cut by layer."""
    return {i: module for i, module in enumerate(session.structure.attentions) if session.stages.of(i)}

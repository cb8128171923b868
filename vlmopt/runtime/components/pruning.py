"""Selectors drop visual tokens at the boundaries of decoder layers."""

from __future__ import annotations

from vlmopt.pruning import Signal

from ..call import Component, Session
from ..hooks.deepstack import DeepStack
from ..hooks.layer import LayerHook


class Pruning(Component):
    """Every layer gets what matches the survivors."""

    @staticmethod
    def wanted(session: Session) -> bool:
        return bool(session.selectors)

    def signals(self) -> set[Signal]:
        return {need for method in self.session.selectors for need in method.captures}

    def install(self) -> None:
        session, structure = self.session, self.session.structure
        for i, layer in enumerate(structure.layers):
            session.hook(layer.register_forward_pre_hook(LayerHook(session, i), with_kwargs=True))
        if hasattr(structure.decoder, "_deepstack_process"):
            DeepStack(session).put()

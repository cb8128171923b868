"""Install everything on one model, and take it all back: the only file that knows every part of the runtime."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

from torch import nn

from ..families import family_of
from ..policy import Policy
from ..scorers import Trained
from . import compat
from .arguments import MODALITIES
from .call import Session
from .captures import capture_of
from .component import Components
from .components.order import COMPONENTS
from .hooks.compiled import Uncompiled, why_not
from .hooks.decoder import CloseStep, OpenStep
from .hooks.embed import EmbedAhead
from .hooks.encoder import FeatureFunction
from .hooks.generate import ContinuousBatching, Generate, PaddingOfIds
from .hooks.head import Head
from .hooks.outer import Outer
from .hooks.retrieval import Retrieval
from .stages import stages_of
from .structure import ModelStructure, part

# Of a module: the first two hold the hooks, the others what was said of them.
HOOK_TABLES = (
    "_forward_pre_hooks",
    "_forward_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
)


def install(policy: Policy, structure: ModelStructure, trained: Trained, retrieval: nn.Module | None = None) -> Session:
    """Put every hook of a checked policy in place; on an error, take back what was done.

    `retrieval` is a model around this one that embeds its rows.
    """
    stages = stages_of(policy, len(structure.layers))
    session = Session(policy, structure, stages, family_of(structure.head.config), uuid.uuid4().hex)
    session.put(trained)
    found = [kind.of(session) for kind in COMPONENTS]
    session.put(Components(component for component in found if component is not None))
    try:
        put(session)
        if retrieval is not None:
            Retrieval(session, retrieval).put()
    except BaseException:
        remove(session)
        raise
    return session


def put(session: Session) -> None:
    """Install what every call needs, then what is captured, then what the components do.

    The decoder's hooks come first and go last: by them `session_of` finds what an interrupted `remove` has left.
    """
    outer, decoder = session.structure.outer, session.structure.decoder
    needs = {need for component in session.slot(Components) for need in component.signals()}
    captures = {capture_of(need): None for need in sorted(needs, key=repr)}  # two sessions install alike
    session.undo.append(Strays(session))
    if session.family.embed is not None:
        session.hook(decoder.register_forward_pre_hook(EmbedAhead(session, session.family.embed), with_kwargs=True))
    session.hook(decoder.register_forward_pre_hook(OpenStep(session), with_kwargs=True))
    session.hook(decoder.register_forward_hook(CloseStep(session), with_kwargs=True))
    if callable(getattr(session.model, "generate", None)):  # not of a bare model
        Generate(session).put()
    if hasattr(session.model, compat.MASK_OF_IDS):
        PaddingOfIds(session).put()
    if hasattr(session.model, "init_continuous_batching"):
        ContinuousBatching(session).put()
    for modality, name in MODALITIES.items():
        if hasattr(outer, name):
            FeatureFunction(session, modality, list(captures)).put()
    if session.family.encoder:
        FeatureFunction(session, "image", list(captures), part(outer, session.family.encoder)).put()
    Outer(session).put()
    Head(session, session.structure.head).put()  # around it, where one module is both
    if session.structure.language_model is not None:
        Head(session, session.structure.language_model).put()
    for need in sorted(needs, key=repr):
        capture_of(need).install(session, need)
    for component in session.slot(Components):
        component.install()
    session.put(Uncompiled(why_not(session)))


def remove(session: Session) -> None:
    """Undo in reverse order; after Ctrl-C it may be called again, and goes on where it stopped."""
    session.lease.alive = False
    while session.undo:
        session.undo[-1]()  # does no harm when called twice
        session.undo.pop()


class Strays:
    """Take off hooks that no handle of ours reaches: on copies of parts, and put in place as Ctrl-C came."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def __call__(self) -> None:
        for tables, key, _ in hooks_below(self.session.model, self.session):
            for table in tables:
                table.pop(key, None)


def session_of(model: nn.Module) -> Session | None:
    """Return the session whose hooks `model`, or anything below it, carries; TypeError for what is no module."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a loaded transformers model, got {type(model).__name__}")
    return next((hook.session for _, _, hook in hooks_below(model)), None)


def session_in(model: nn.Module) -> Session:
    """Return the session of an optimized model.

    Raises:
        ValueError: it is not optimized.
    """
    session = session_of(model)
    if session is None:
        raise ValueError(
            "this model is not optimized: call vlmopt.optimize(model, policy) first, read the report before restore()"
        )
    return session


def hooks_below(model: nn.Module, session: Session | None = None) -> Iterator[tuple[list[dict[int, Any]], int, Any]]:
    """Yield (tables of its module, key in them, hook) of every hook of `session`, or of any not yet undone."""
    for module in model.modules():
        tables: list[dict[int, Any]] = [vars(module)[name] for name in HOOK_TABLES]
        for key, hook in [*tables[0].items(), *tables[1].items()]:
            found = getattr(hook, "session", None)
            if not isinstance(found, Session):
                continue
            if found is session or (session is None and (found.lease.alive or found.undo)):
                yield tables, key, hook

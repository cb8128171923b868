"""Install everything on one model, and take it all back: the only file that knows every part of the runtime."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from vlmopt.pruning import Activations, AttentionRows, FirstPassRows, Projector, Signal, VisionAttention, VisionKeys

from ..families import family_of
from ..policy import Policy
from ..scorers import TrainedScorer
from . import activations, attention, encoder, first_pass, sparse, tower
from .arguments import MODALITIES
from .call import CALL, STEP, Session
from .calls import CloseForward, FirstToken, Generate
from .corrections import Corrections
from .decoder import CloseStep, OpenStep
from .deepstack import DeepStack
from .discover import Anatomy
from .layers import LayerHook
from .outer import FeatureProbe, OuterHook
from .predicting import LabelsHook

# Of a module: the first two hold the hooks, the others what was said of them.
HOOK_TABLES = (
    "_forward_pre_hooks",
    "_forward_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
)


def install(policy: Policy, anatomy: Anatomy, trained: Mapping[str, TrainedScorer] | None = None) -> Session:
    """Put every hook of a checked policy in place; on an error, take back what was done."""
    model = anatomy.head
    session = Session(model, policy, anatomy, family_of(model.config), dict(trained or {}), uuid.uuid4().hex)
    if policy.corrections or sparse.method_of(session):  # sparse prefills read the marks
        session.components.append(Corrections(session))
    try:
        put(session)
    except BaseException:
        remove(session)
        raise
    return session


def put(session: Session) -> None:
    """Touch points from the outside in; of two at one place, the one that cuts comes first."""
    anatomy = session.anatomy
    Generate(session).put()
    for modality, name in MODALITIES.items():
        if hasattr(anatomy.outer, name):
            FeatureProbe(session, modality).put()
    session.hook(anatomy.outer.register_forward_pre_hook(OuterHook(session), with_kwargs=True))
    session.hook(anatomy.outer.register_forward_hook(CloseForward(session), always_call=True))
    session.hook(anatomy.head.register_forward_pre_hook(LabelsHook(anatomy.head), with_kwargs=True))
    session.hook(anatomy.head.register_forward_hook(FirstToken(session)))
    session.hook(anatomy.decoder.register_forward_pre_hook(OpenStep(session), with_kwargs=True))
    session.hook(anatomy.decoder.register_forward_hook(CloseStep(session), with_kwargs=True, always_call=True))
    if session.selectors:
        for i, layer in enumerate(anatomy.layers):
            session.hook(layer.register_forward_pre_hook(LayerHook(session, i), with_kwargs=True))
        if hasattr(anatomy.decoder, "_deepstack_process"):
            DeepStack(session).put()
    sparse.install(session)
    for component in session.components:
        component.install()
    capture(session)
    tower.install(session)  # behind the probes, which read what the tower really ran on


def capture(session: Session) -> None:
    """Read the signals that methods ask for."""
    corrections = session.component(Corrections)
    needs: set[Signal] = {need for method in session.selectors for need in method.captures}
    needs |= corrections.signals() if corrections is not None else set()
    for need in sorted(needs, key=repr):  # a fixed order, so that two sessions install alike
        if isinstance(need, AttentionRows):
            attention.install(session, need)
        elif isinstance(need, FirstPassRows):
            first_pass.install(session, need)
        elif isinstance(need, Activations):
            activations.install(session, need)
        elif isinstance(need, (VisionAttention, VisionKeys)):
            encoder.install(session, need)
    if any(isinstance(need, (Projector, VisionAttention, VisionKeys)) for need in needs):
        encoder.install_projector(session)


def remove(session: Session) -> None:
    """Undo in reverse order, and let go of a call that was interrupted; idempotent."""
    session.lease.alive = False
    while session.undo:
        session.undo.pop()()
    for tables, key, _ in hooks_below(session.model, session):  # on copies of parts
        for table in tables:
            table.pop(key, None)
    if session.running_step() is not None:
        STEP.set(None)
    if session.running_call() is not None:
        CALL.set(None)


def session_of(model: nn.Module) -> Session | None:
    """The session whose hooks `model`, or anything below it, carries."""
    return next((hook.session for _, _, hook in hooks_below(model)), None)


def hooks_below(model: nn.Module, session: Session | None = None) -> Iterator[tuple[list[dict[int, Any]], int, Any]]:
    """(tables of its module, key in them, hook) of every hook of `session`, or of any that is installed."""
    for part in model.modules():
        tables: list[dict[int, Any]] = [vars(part)[name] for name in HOOK_TABLES]
        for key, hook in [*tables[0].items(), *tables[1].items()]:
            found = getattr(hook, "session", None)
            if isinstance(found, Session) and (found is session or (session is None and found.lease.alive)):
                yield tables, key, hook

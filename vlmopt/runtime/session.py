"""One optimized model: what is installed where, the undo stack, and the ledger of its last call."""

from __future__ import annotations

import copy
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import nn

from vlmopt.attention_fix import Correction
from vlmopt.pruning import (
    Activations,
    AttentionRows,
    FirstPassRows,
    Pixels,
    Projector,
    Selector,
    VisionAttention,
    VisionKeys,
)

from ..families import family_of
from ..policy import Policy
from ..scorers import TrainedScorer
from . import attention, encoder, first_pass, sparse, tower
from .activations import ActivationHook, last_linear
from .calls import CloseForward, FirstToken, Generate
from .context import CALL, STEP, Lease
from .correct import Record
from .corrections import Corrections
from .decoder import CloseStep, OpenStep
from .deepstack import DeepStack
from .discover import Anatomy
from .layers import LayerHook
from .ledger import Call, Clock
from .offload import device_of
from .outer import MODALITIES, FeatureProbe, OuterHook
from .predicting import LabelsHook
from .stand_in import StandIn

# Of a module: the first two hold the hooks, the others what was said of them.
HOOK_TABLES = (
    "_forward_pre_hooks",
    "_forward_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
)


class Session:
    """Everything `optimize` put on one model. Hooks are objects, not closures, so that they copy and pickle.

    Nothing is put on wrappers such as PEFT's: they come and go, and reach `generate` of the model below anyway.
    """

    def __init__(self, policy: Policy, anatomy: Anatomy, trained: Mapping[str, TrainedScorer] | None = None) -> None:
        self.model: Any = anatomy.head
        self.policy, self.anatomy = policy, anatomy
        self.trained = dict(trained or {})  # by source
        self.family = family_of(self.model.config)
        active: list[Selector] = policy.active
        self.selectors = tuple(active)  # the k-th cut starts stage k + 1
        self.stage_of = [sum(method.layer <= i for method in active) for i in range(len(anatomy.layers))]
        self.repack = any(method.numbering == "repack" for method in active)
        self.resizer: Any = next((method for method in active if method.resizes_pixels), None)
        self.before_tower: Any = next((method for method in active if method.before_tower), None)
        self.sparse = policy.prefill if policy.prefill is not None and not policy.prefill.neutral else None
        self.corrections = Corrections(self) if policy.corrections or self.sparse else None  # also keeps the marks
        captures = {need for method in active for need in method.captures}
        captures |= self.corrections.signals() if self.corrections is not None else set()
        self.captures = sorted(captures, key=repr)  # a fixed order, so that two sessions install alike
        self.reads_pixels = any(isinstance(need, Pixels) for need in captures)
        self.first_passes = any(isinstance(need, FirstPassRows) for need in captures)
        self.tower_depth = 0
        self.projector_layers = encoder.ProjectorLayers()
        self.lease = Lease()
        self.serial = uuid.uuid4().hex  # copies of the session share it
        self.undo: list[Callable[[], None]] = []
        self.last_call: Call | None = None  # None also while a call runs, and when it did not finish
        self.called = False

    def __getstate__(self) -> dict[str, Any]:
        """What copies and pickles take along: they have not run yet."""
        return {**self.__dict__, "last_call": None, "called": False}

    def __deepcopy__(self, memo: dict[int, Any]) -> Session:
        """A copied model gets a session of its own; a copied part (PEFT's `modules_to_save`) stays with this one."""
        if id(self.model) not in memo:
            return self
        twin = object.__new__(type(self))
        memo[id(self)] = twin
        twin.__dict__.update(copy.deepcopy(self.__getstate__(), memo))
        return twin

    def install(self) -> None:
        """Put every hook in place; on an error, take back what was done."""
        try:
            self._install()
        except BaseException:
            self.remove()
            raise

    def _install(self) -> None:
        anatomy = self.anatomy
        self.stand_in(Generate(self))
        for modality, name in MODALITIES.items():
            if hasattr(anatomy.outer, name):
                self.stand_in(FeatureProbe(self, modality))
        self.hook(anatomy.outer.register_forward_pre_hook(OuterHook(self), with_kwargs=True))
        self.hook(anatomy.outer.register_forward_hook(CloseForward(self), always_call=True))
        self.hook(anatomy.head.register_forward_pre_hook(LabelsHook(anatomy.head), with_kwargs=True))
        self.hook(anatomy.head.register_forward_hook(FirstToken(self)))
        self.hook(anatomy.decoder.register_forward_pre_hook(OpenStep(self), with_kwargs=True))
        self.hook(anatomy.decoder.register_forward_hook(CloseStep(self), with_kwargs=True, always_call=True))
        if self.selectors:
            for i, layer in enumerate(anatomy.layers):
                self.hook(layer.register_forward_pre_hook(LayerHook(self, i), with_kwargs=True))
            if hasattr(anatomy.decoder, "_deepstack_process"):
                self.stand_in(DeepStack(self))
        if self.sparse is not None:
            sparse.install(self, self.sparse)
        if self.corrections is not None:
            self.corrections.install()  # behind the hooks that cut: they see what is left
        for need in self.captures:
            if isinstance(need, AttentionRows):
                attention.install(self, need)
            elif isinstance(need, FirstPassRows):
                first_pass.install(self, need)
            elif isinstance(need, Activations):
                linear = last_linear(anatomy.layers[need.layer])
                assert linear is not None
                self.hook(linear.register_forward_pre_hook(ActivationHook(self, need.layer)))
            elif isinstance(need, (VisionAttention, VisionKeys)):
                self.tower_depth = encoder.install(self, need)
        if any(isinstance(need, (Projector, VisionAttention, VisionKeys)) for need in self.captures):
            projector = encoder.part(anatomy.outer, self.family.projector)
            self.hook(projector.register_forward_hook(encoder.ProjectorHook(self), with_kwargs=True))
        if self.before_tower is not None:
            tower.install(self)  # behind the probes, which read what the tower really ran on

    def stand_in(self, method: StandIn) -> None:
        self.undo.append(method.take_back)
        method.put()

    def hook(self, handle: Any) -> None:
        self.undo.append(handle.remove)

    def remove(self) -> None:
        """Undo in reverse order, and let go of a call that was interrupted; idempotent."""
        self.lease.alive = False
        while self.undo:
            self.undo.pop()()
        for tables, key, _ in hooks_below(self.model, self):  # on copies of parts
            for table in tables:
                table.pop(key, None)
        if (step := STEP.get()) is not None and step.owner is self:
            STEP.set(None)
        if self.running_call() is not None:
            CALL.set(None)

    def new_call(self, *, by_generate: bool, prompt_length: int | None = None) -> Call:
        call = Call(self, Clock(device_of(self.model)), by_generate, prompt_length)
        call.start = call.clock.now()
        self.last_call, self.called = None, True
        return call

    def running_call(self) -> Call | None:
        """The call of this session that runs now in this context, None outside one."""
        call = CALL.get()
        return call if call is not None and call.session is self else None

    def open_forward_call(self) -> Call:
        """The running `generate` of this session, or a new call for a bare forward."""
        call = self.running_call()
        if call is None or not call.by_generate:
            around = CALL.get() if call is None else call.around  # an earlier forward of ours was interrupted
            call = self.new_call(by_generate=False)
            call.around = around
            CALL.set(call)
        return call

    def record(self, call: Call, correction: Correction, layer: int) -> Record:
        """Where a correction takes down what it does in a layer during a call."""
        return call.records.setdefault((correction.name, layer), Record())

    def finish(self, call: Call) -> None:
        call.finish()
        self.last_call = call


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

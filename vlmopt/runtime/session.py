"""One optimized model: what is installed where, the undo stack, and the ledger of its last call."""

from __future__ import annotations

import functools
import uuid
from collections.abc import Callable, Mapping
from contextvars import Token
from typing import Any

import torch
from torch import nn

from vlmopt.attention_fix import Correction
from vlmopt.pruning import (
    Activations,
    AttentionRows,
    FirstPassRows,
    Pixels,
    Projector,
    Selector,
    TwoLayers,
    VisionAttention,
    VisionKeys,
)

from ..families import family_of
from ..policy import Policy
from ..scorers import TrainedScorer
from . import attention, encoder, first_pass, sparse, tower
from .activations import ActivationHook, last_linear
from .context import CALL, Lease
from .correct import Record
from .corrections import Corrections
from .decoder import CloseStep, OpenStep
from .deepstack import DeepStack
from .discover import Anatomy
from .guidance import branching, guided
from .layers import LayerHook
from .ledger import Call, Clock
from .outer import MODALITIES, FeatureProbe, OuterHook

ATTRIBUTE = "_vlmopt"


class Session:
    """Everything `optimize` put on one model. Hooks are objects, not closures, so that deepcopy copies them."""

    def __init__(
        self, model: nn.Module, policy: Policy, anatomy: Anatomy, trained: Mapping[str, TrainedScorer] | None = None
    ) -> None:
        self.model: Any = model
        self.policy, self.anatomy = policy, anatomy
        self.trained = dict(trained or {})  # by source
        self.family = family_of(model.config)
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
        self._layers: tuple[list[Any], TwoLayers | None] | None = None
        self.lease = Lease()
        self.serial = uuid.uuid4().hex  # copies of the session share it
        self.undo: list[Callable[[], None]] = []
        self.last_call: Call | None = None

    def install(self) -> None:
        """Put every hook in place; on an error, take back what was done."""
        try:
            self._install()
        except BaseException:
            self.remove()
            raise

    def _install(self) -> None:
        anatomy = self.anatomy
        self.set_attribute(self.model, ATTRIBUTE, self)
        self.set_attribute(self.model, "generate", Generate(self))
        for modality, name in MODALITIES.items():
            if hasattr(anatomy.outer, name):
                self.set_attribute(anatomy.outer, name, FeatureProbe(self, modality, getattr(anatomy.outer, name)))
        self.hook(anatomy.outer.register_forward_pre_hook(OuterHook(self), with_kwargs=True))
        self.hook(anatomy.outer.register_forward_hook(CloseForward(self), always_call=True))
        self.hook(anatomy.head.register_forward_hook(FirstToken(self)))
        self.hook(anatomy.decoder.register_forward_pre_hook(OpenStep(self), with_kwargs=True))
        self.hook(anatomy.decoder.register_forward_hook(CloseStep(self), with_kwargs=True, always_call=True))
        if self.selectors:
            for i, layer in enumerate(anatomy.layers):
                self.hook(layer.register_forward_pre_hook(LayerHook(self, i), with_kwargs=True))
            if hasattr(anatomy.decoder, "_deepstack_process"):
                self.set_attribute(
                    anatomy.decoder, "_deepstack_process", DeepStack(self, anatomy.decoder._deepstack_process)
                )
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

    def set_attribute(self, module: nn.Module, name: str, value: Any) -> None:
        """An instance attribute over a class attribute (or over somebody else's instance attribute)."""
        self.undo.append(RestoreAttribute(module, name))
        object.__setattr__(module, name, value)

    def hook(self, handle: Any) -> None:
        self.undo.append(handle.remove)

    def remove(self) -> None:
        """Undo in reverse order; idempotent."""
        self.lease.alive = False
        while self.undo:
            self.undo.pop()()

    def projector_layers(self, module: nn.Module, inputs: torch.Tensor) -> TwoLayers | None:
        """The projector's parts, with what selectors derived from them, until a weight changes."""
        stamp = [(p.data_ptr(), 0 if p.is_inference() else p._version) for p in module.parameters()]
        if self._layers is None or self._layers[0] != stamp:
            self._layers = (stamp, encoder.two_layers(module, inputs))
        return self._layers[1]

    def new_call(self, *, by_generate: bool, prompt_length: int | None = None) -> Call:
        device = next(self.model.parameters()).device
        call = Call(self, Clock(device), by_generate, prompt_length)
        call.start = call.clock.now()
        return call

    def running_call(self) -> Call | None:
        """The call of this session that runs now in this context, None outside one."""
        call = CALL.get()
        return call if call is not None and call.session is self else None

    def open_forward_call(self) -> Call:
        """The running `generate` of this session, or a new call for a bare forward."""
        call = self.running_call()
        if call is None or not call.by_generate:
            call = self.new_call(by_generate=False)
            CALL.set(call)
        return call

    def record(self, call: Call, correction: Correction, layer: int) -> Record:
        """Where a correction takes down what it does in a layer during a call."""
        return call.records.setdefault((correction.name, layer), Record())

    def finish(self, call: Call) -> None:
        call.end = call.clock.now()
        call.features.clear()  # the report needs none of the encoder's tensors
        if call.marks is not None:
            tables = call.marks.tables.items()
            call.sinks = {layer: table for (name, layer), table in tables if name == "sink" and layer is not None}
            call.marks = None
        self.last_call = call


class RestoreAttribute:
    """Put an instance attribute back to what it was, or take it away."""

    def __init__(self, module: nn.Module, name: str) -> None:
        self.module, self.name = module, name
        self.had = name in module.__dict__
        self.old = module.__dict__.get(name)

    def __call__(self) -> None:
        if self.had:
            object.__setattr__(self.module, self.name, self.old)
        else:
            self.module.__dict__.pop(self.name, None)


class Generate:
    """`model.generate` with a ledger around it; arguments and result are the model's own."""

    def __init__(self, session: Session) -> None:
        self.session: Session = session
        self.original: Callable[..., Any] = session.model.generate
        functools.update_wrapper(self, self.original, updated=())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        session = self.session
        ids = kwargs.get("input_ids", kwargs.get("inputs", args[0] if args else None))
        length = ids.shape[1] if isinstance(ids, torch.Tensor) and ids.ndim == 2 else None
        call = session.new_call(by_generate=True, prompt_length=length)
        call.prompt_ids = ids if length is not None else None
        mask = kwargs.get("attention_mask")
        call.prompt_mask = mask.bool() if isinstance(mask, torch.Tensor) and mask.ndim == 2 else None
        call.branches = branching(session, kwargs)
        if session.corrections is not None and session.corrections.guided:
            kwargs["logits_processor"] = guided(session, kwargs, call.branches)
        token: Token[Call | None] = CALL.set(call)
        try:
            out = self.original(*args, **kwargs)
            sequences = getattr(out, "sequences", out)
            call.new_tokens = sequences.shape[1] - (length or 0)
            session.finish(call)
            return out
        finally:
            CALL.reset(token)


class CloseForward:
    """Ends the call of a bare forward, also when it raised."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        call = self.session.running_call()
        if call is not None and not call.by_generate:
            CALL.set(None)
            if output is not None:
                self.session.finish(call)


class FirstToken:
    """Marks when the first logits of a call exist: the end of TTFT."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        call = self.session.running_call()
        if call is not None and call.by_generate and call.prompt_done and call.first_token is None:
            call.first_token = call.clock.now()

"""Capture what goes through the projector, and which row of its output became which token.

A token's row is found by its bits: the model copies those rows into its embeddings, through window orders, newline
tokens and unpadding of its own, so equal bits say which row became which token.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vlmopt.pruning import Selector
from vlmopt.pruning.signals import Projector, ProjectorCall, TwoLayers, VisionAttention

from ...families import family_of
from ...methods import Method
from ...offload import resident, why_unreadable
from ..adapters import innermost, is_linear, leaves, merged, plain, still
from ..call import PromptStep, Session
from ..capture import Capture, Need, described
from ..context import VisualContext
from ..place import Place
from ..structure import ModelStructure, part
from ..unseen import refuse_unencoded

NORMS = (nn.LayerNorm, nn.RMSNorm)  # and the RMS norms of transformers, which have a `variance_epsilon`
PRINTED = 64  # columns that make up a row's fingerprint


@dataclass
class Encoded:
    """State of the features of a call: what runs of the encoder left for the methods of the policy."""

    inputs: list[Tensor] = field(default_factory=list)  # of the projector, as it was called
    outputs: list[Tensor] = field(default_factory=list)
    attention: dict[VisionAttention, list[Tensor]] = field(
        default_factory=lambda: defaultdict(list)
    )  # [items, patches]
    keys: dict[int, list[Tensor]] = field(default_factory=lambda: defaultdict(list))  # block -> [items, patches, d_h]


class ProjectorHook:
    """Forward hook of the projector: keeps references to input and output, copies nothing."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        call = self.session.running_call()
        given = args[0] if args else next(iter(kwargs.values()), None)
        if call is not None and isinstance(given, Tensor) and isinstance(output, Tensor):
            encoded = call.features.slot(Encoded)
            encoded.inputs.append(given.detach())
            encoded.outputs.append(output.detach())


class Form(NamedTuple):
    """What is known of a projector: what it makes of two rows, itself with adapters merged, and its two layers."""

    answer: Tensor
    module: nn.Module
    layers: TwoLayers | None


class ProjectorLayers:
    """The projector's parts, with what selectors derived from them, for as long as it computes the same.

    It is asked with two rows: adapters merge into weights without a trace in addresses or autograd's version counters.
    """

    def __init__(self) -> None:
        self.hooked = False  # the projector is listened to
        self.rows: Tensor | None = None  # [2, p, d_v]
        self.known: Form | None = None

    @torch.no_grad()
    def of(self, module: nn.Module, inputs: Tensor) -> Form:
        """Return what it is now; inputs [k, p, d_v], patches as they enter."""
        rows, known = self.rows, self.known  # another thread may renew them
        if rows is None or rows.shape[1:] != inputs.shape[1:]:
            rows, known = self.rows, self.known = inputs[:2].clone(), None
        rows = rows.to(inputs)
        if module.training:  # dropout of adapters would make every answer another one
            module = still(module)
        answer = module.forward(rows.flatten(0, 1))
        if known is None or not alike(known.answer, answer):
            whole = merged(module, rows)
            if not close(whole.forward(rows.flatten(0, 1)), answer):  # adapters that are no linear maps
                whole = module
            known = self.known = Form(answer, whole, two_layers(whole, rows, answer))  # at once: Ctrl-C leaves no half
        return known


def alike(a: Tensor, b: Tensor) -> bool:
    return (a.dtype, a.device) == (b.dtype, b.device) and torch.equal(a, b)


def close(got: Tensor, expected: Tensor) -> bool:
    return got.shape == expected.shape and torch.allclose(got, expected, rtol=1e-2, atol=1e-3)


def two_layers(module: nn.Module, rows: Tensor, expected: Tensor) -> TwoLayers | None:
    """Return the projector as second(gelu(first(norm(x)))), tried out on some of its input rows; None where it is not.

    Args:
        rows: [k, p, d_v], patches as they enter.
        expected: [k, d], what the module makes of them.
    """
    parts = mlp_parts(module)
    if parts is None:
        return None
    norm, linears, activation = parts
    norm = None if norm is None else resident(norm)
    width = rows.shape[-1] if norm is None else next(norm.parameters()).shape[-1]
    held = [resident(linear) for linear in linears]
    first, second = (linear if is_plain(linear) else plain(linear, rows) for linear in held)
    found = TwoLayers(norm, width == rows.shape[-1], first, activation, second)
    try:
        x = rows.flatten(1) if norm is None else norm(rows if found.per_patch else rows.flatten(1)).flatten(1)
        got = found.second(found.gelu(found.first(x)))
    except RuntimeError:  # shapes of another form
        return None
    return found if close(got, expected) else None


def mlp_parts(module: nn.Module) -> tuple[nn.Module | None, list[nn.Module], nn.Module] | None:
    """Return norm, linear maps and activation of what may be an MLP with one hidden layer; None where it is none."""
    parts = list(leaves(module))
    linears = [m for m in parts if is_linear(m)]
    norms = [m for m in parts if m not in linears and any(True for _ in m.parameters())]
    activations = [m for m in parts if m not in linears and m not in norms and "gelu" in type(m).__name__.lower()]
    if len(linears) != 2 or len(norms) > 1 or len(activations) != 1:
        return None
    if norms and not (isinstance(norms[0], NORMS) or hasattr(norms[0], "variance_epsilon")):
        return None
    return norms[0] if norms else None, linears, activations[0]


def differentiable(module: nn.Module) -> bool:
    """Return whether all linear layers of a module have derivatives; one with adapters has them merged."""
    return all(is_plain(m) for m in leaves(module) if isinstance(m, nn.Linear) and innermost(m) is m)


def is_plain(linear: nn.Linear) -> bool:
    """Return whether the weights of a linear layer are a matrix of floats, neither packed nor quantised."""
    return linear.weight.is_floating_point() and type(linear.weight.data) is Tensor


class OfRows(Capture[Need]):
    """Base of signals that tokens have by their row in the projector's output."""

    def check(self, model: Any, structure: ModelStructure, method: Method, need: Need) -> None:
        family = family_of(model.config)
        if not family.by_token:
            raise ValueError(
                f"{method.name}: visual tokens of {model.config.model_type} are not rows of a projector's output (they "
                "are pooled or scaled, or the family is not described); works with: "
                f"{described(lambda f: f.by_token)}. Use a selector that reads embeddings, e.g. div_prune"
            )
        if reason := why_unreadable(part(structure.outer, family.projector)):
            raise ValueError(f"{method.name}: {reason}; load the model's weights first")

    def install(self, session: Session, need: Need) -> None:
        known = session.slot(ProjectorLayers)
        if not known.hooked:
            projector = part(session.structure.outer, session.family.projector)
            session.hook(projector.register_forward_hook(ProjectorHook(session), with_kwargs=True))
            known.hooked = True

    def missing(self, step: PromptStep, context: VisualContext, need: Need) -> str | None:
        if not step.call.features.slot(Encoded).outputs:
            refuse_unencoded(step, "its projector was not called")
            return "the projector did not run in this call (features were computed before)"
        if not bool((patch_rows(step, context)[context.visual] >= 0).any()):
            return "this model changes the projector's output before the LLM, so tokens have no row of their own"
        return None


class ProjectorCapture(OfRows[Projector]):
    """Capture `Projector`."""

    def check(self, model: Any, structure: ModelStructure, method: Method, need: Projector) -> None:
        super().check(model, structure, method, need)
        module = part(structure.outer, family_of(model.config).projector)
        if isinstance(method, Selector):
            method.check_projector(mlp_parts(module) is not None, differentiable(module))

    def read(self, need: Projector, at: Place) -> ProjectorCall:
        encoded, session = at.step.call.features.slot(Encoded), at.session
        module = part(session.structure.outer, session.family.projector)
        grouped = torch.cat([group_patches(i, o) for i, o in zip(encoded.inputs, encoded.outputs, strict=True)])

        _, whole, layers = session.slot(ProjectorLayers).of(module, grouped)

        def function(x: Tensor) -> Tensor:
            out: Tensor = whole.forward(x.flatten(0, 1))
            return out

        return ProjectorCall(of_tokens(at, grouped, float("nan")), function, layers, differentiable(whole))


def patch_rows(step: PromptStep, context: VisualContext) -> Tensor:
    """Return Long[B, L]: the row of the projector's output that became each logical index; -1 where none did."""

    def match() -> Tensor:
        rows = torch.cat([out.flatten(0, -2) for out in step.call.features.slot(Encoded).outputs]).to(step.embeds)
        print_, order = fingerprint(rows).sort(stable=True)
        found = torch.full(step.embeds.shape[:2], -1, device=step.embeds.device)
        visual = context.visual.to(step.embeds.device)
        wanted = fingerprint(step.embeds[visual])
        index = torch.searchsorted(print_, wanted).clamp_max(len(print_) - 1)
        found[visual] = torch.where(print_[index] == wanted, order[index], -1)
        return found

    return step.remember(("patch rows",), None, match)


def fingerprint(rows: Tensor) -> Tensor:
    """Return Long[n] from the bits of up to 64 columns of [n, d]; equal rows get equal numbers."""
    columns = torch.linspace(
        0, rows.shape[1] - 1, min(PRINTED, rows.shape[1]), device=rows.device, dtype=torch.float32
    ).long()
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[rows.element_size()]
    bits = rows[:, columns].contiguous().view(integer).long()
    odd = torch.arange(1, 2 * bits.shape[1], 2, device=rows.device) * 0x5851F42D4C957F2D + 1
    return (bits * (odd | 1)).sum(1)


def of_tokens(at: Place, per_row: Tensor, fill: float) -> Tensor:
    """Take values [rows, ...] of the projector's rows for the current tokens; `fill` where a token has no row."""
    row = patch_rows(at.step, at.context)[at.batch_row, at.logical.to(at.step.embeds.device)].to(per_row.device)
    value = per_row[row.clamp_min(0)]
    known = (row >= 0).view(-1, *[1] * (value.ndim - 1))
    return torch.where(known, value, torch.full_like(value, fill))


def group_patches(inputs: Tensor, outputs: Tensor) -> Tensor:
    """Return [rows, p, d_v]: the p consecutive patches that went into each output row."""
    rows = outputs.shape[:-1].numel()
    return inputs.reshape(rows, -1, inputs.shape[-1])

"""The primitive, and the choice of who computes it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

from torch import Tensor

from .index import Keys, Launch, tile_count
from .inputs import AttentionInputs

# What a back-end is: the inputs hold the launch's own keys already.
Attention = Callable[[AttentionInputs, Launch, bool], Tensor | tuple[Tensor, Tensor]]
BACKENDS = ("reference", "native", "gather", "flex", "triton", "fa4")


def sparse_attention(
    inputs: AttentionInputs, launch: Launch, *, return_lse: bool = False, backend: str = "auto"
) -> Tensor | tuple[Tensor, Tensor]:
    """Compute causal attention of every row over the keys that a launch's index keeps for its tile. Forward only.

    Row i of sample b stands at position i + k_len[b] - q_len[b] and sees its kept keys j with
    max(key_min, k_start[b]) <= pos(j) <= position of row (i // row_step * row_step) - causal_shift.

    Args:
        inputs: queries, keys, values and their lengths; a launch may bring keys of its own.
        launch: the index, and the limits that it is computed with.
        backend: "reference"; "gather" for any device; "native" for CPUs with a C++ compiler; "flex" for aligned
            blocks; "triton" for CUDA; "fa4" for large aligned blocks on Hopper; "auto": triton or native where they
            can, else gather.

    Returns:
        [B, H, Sq, D] in the dtype of q, H = len(index.heads) or Hq; with `return_lse` also the natural log-sum-exps,
        fp32 [B, H, Sq]. A row that sees nothing, padding among them, is 0 and -inf.

    Raises:
        ValueError: shapes that do not fit, an unknown back-end, or one that cannot compute this.
    """
    inputs = inputs.of(launch)
    _check(inputs, launch)
    name = chosen_backend(inputs, [launch], backend)
    function: Attention = getattr(_module(name), f"{name}_attention")
    return function(inputs, launch, return_lse)


def chosen_backend(inputs: AttentionInputs, launches: Sequence[Launch], backend: str = "auto") -> str:
    """Return the name of the back-end that computes a plan: "auto" resolved, and "a+b" where launches differ.

    Raises:
        ValueError: an unknown back-end.
    """
    if backend not in ("auto", *BACKENDS):
        raise ValueError(f"backend must be one of {('auto', *BACKENDS)}, got {backend!r}")
    if backend != "auto":
        return backend
    names = sorted({_automatic(inputs.of(launch), launch) for launch in launches})
    return "+".join(names) or "gather"


def refusal(inputs: AttentionInputs, launch: Launch, return_lse: bool = False, backend: str = "auto") -> str:
    """Return why a back-end cannot compute a launch, in words; empty if it can.

    Raises:
        ValueError: an unknown back-end, or one that is not installed.
    """
    name = chosen_backend(inputs, [launch], backend)
    return "" if name == "reference" else str(_module(name).refusal(inputs.of(launch), launch, return_lse))


def _automatic(inputs: AttentionInputs, launch: Launch) -> str:
    name = "triton" if inputs.q.is_cuda else "native"
    if name == "triton" and find_spec("triton") is None:
        return "gather"
    return "gather" if _module(name).refusal(inputs, launch) else name


def _module(name: str) -> ModuleType:
    try:
        return import_module(f".{name}", __package__)
    except ImportError as error:
        raise ValueError(f"backend {name!r} needs {error.name}, which is not installed; use backend='auto'") from error


def _check(inputs: AttentionInputs, launch: Launch) -> None:
    """Check what can be told without reading values, so that no device is waited for."""
    q, k, v, index = inputs.q, inputs.k, inputs.v, launch.index
    if k.shape != v.shape or q.ndim != 4 or k.ndim != 4 or (len(q), q.shape[3]) != (len(k), k.shape[3]):
        raise ValueError(f"q must be [B, Hq, Sq, D], k and v [B, Hk, W, D], got {[tuple(x.shape) for x in (q, k, v)]}")
    (batch, heads, rows, _), (_, key_heads, width, _) = q.shape, k.shape
    if heads % key_heads:
        raise ValueError(f"{heads} query heads do not share {key_heads} key heads evenly")
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.stride(-1) != 1:
            raise ValueError(f"{name} needs unit stride in its last dimension, got strides {x.stride()}")
    tables = (heads, key_heads) if index.heads is None else (len(index.heads),)
    if index.batch != batch or index.covered not in tables:
        raise ValueError(
            f"the index is for {index.batch} samples and {index.covered} heads, the call has {batch} and "
            f"{' or '.join(map(str, tables))}"
        )
    slots = rows if index.q_order is None else index.q_order.shape[-1]
    if index.tiles != tile_count(slots, index.tile):
        raise ValueError(f"{slots} query slots make {tile_count(slots, index.tile)} tiles, the index has {index.tiles}")
    keys = inputs.keys or Keys()
    optional: dict[str, tuple[Tensor | None, tuple[int, ...], int | None]] = {
        "q_order": (index.q_order, (1, index.covered), None),
        "k_order": (index.k_order, (1, key_heads), None),
        "grid": (index.grid, (index.covered,), 3),
        "slash": (index.slash, (index.covered,), 2),
        "keys.key_position": (keys.key_position, (1, key_heads), width),
        "keys.bias": (keys.bias, (1, key_heads), width),
    }
    for name, (table, seconds, last) in optional.items():
        if table is None:
            continue
        if len(table) != batch or table.shape[1] not in seconds or last not in (None, table.shape[2]):
            second = " | ".join(map(str, seconds))
            raise ValueError(f"{name} must be [{batch}, {second}, {last or 'slots'}], got {tuple(table.shape)}")
    if launch.causal_shift < 0 or launch.row_step < 1:
        raise ValueError(
            f"causal_shift must be >= 0 and row_step >= 1, got {launch.causal_shift} and {launch.row_step}"
        )
    if index.slash is not None and keys.key_position is not None:
        raise ValueError("slash needs keys whose positions are their indices; leave out keys.key_position")

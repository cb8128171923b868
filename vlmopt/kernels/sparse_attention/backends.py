"""The primitive and who computes it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from torch import Tensor

from .index import Keys, Launch, SparseIndex, tile_count

BACKENDS = ("reference", "gather", "flex", "triton", "fa4")


def sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    index: SparseIndex,
    *,
    scale: float | None = None,
    causal_shift: int = 0,
    key_min: int | Tensor = 0,
    row_step: int = 1,
    q_len: Tensor | None = None,
    k_len: Tensor | None = None,
    k_start: Tensor | None = None,
    keys: Keys | None = None,
    softcap: float | None = None,
    return_lse: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Causal attention of every row over the keys that an index keeps for its tile. Forward only.

    Row i of sample b stands at position i + k_len[b] - q_len[b] and sees its kept keys j with
    max(key_min, k_start[b]) <= pos(j) <= position of row (i // row_step * row_step) - causal_shift.

    Args:
        q: [B, Hq, Sq, D].
        k, v: [B, Hk, W, D], Hk divides Hq. Any strides, channels next to one another; nothing is copied whole.
        scale: of the products; default 1 / sqrt(D).
        causal_shift: tokens >= 0 before the own position that are left out, for a second launch.
        key_min: first position kept; or Long[B].
        row_step: so many rows, counted from row 0, see no more than the first of them.
        q_len, k_len: Long[B], real rows and keys of right-padded samples; default Sq and W.
        k_start: Long[B], first real key of left-padded samples; rows before it are padding.
        keys: positions and biases of keys that stand for several; then give k_len, since W does not count positions.
        softcap: c of c * tanh(scaled / c).
        backend: "reference"; "gather" for any device; "flex" for aligned blocks; "triton" for CUDA; "fa4" for large
            aligned blocks on Hopper; "auto": triton on CUDA where it can, else gather.

    Returns:
        [B, H, Sq, D] in the dtype of q, H = len(index.heads) or Hq; with `return_lse` also the natural log-sum-exps,
        fp32 [B, H, Sq]. A row that sees nothing, padding among them, is 0 and -inf.

    Raises:
        ValueError: shapes that do not fit, an unknown back-end, or one that cannot compute this.
    """
    _check(q, k, v, index, causal_shift, row_step, keys)
    name = chosen_backend(q, index, backend, keys)
    return _function(name)(
        q, k, v, index, scale=scale, causal_shift=causal_shift, key_min=key_min, row_step=row_step, q_len=q_len,
        k_len=k_len, k_start=k_start, keys=keys, softcap=softcap, return_lse=return_lse,
    )  # fmt: skip


def chosen_backend(
    q: Tensor, index: SparseIndex | Sequence[Launch], backend: str = "auto", keys: Keys | None = None
) -> str:
    """Name of the back-end that computes an index, or a plan: "auto" resolved, and "a+b" where launches differ.

    Raises:
        ValueError: an unknown back-end.
    """
    if backend not in ("auto", *BACKENDS):
        raise ValueError(f"backend must be one of {('auto', *BACKENDS)}, got {backend!r}")
    if backend != "auto":
        return backend
    launches = [Launch(index, keys=keys)] if isinstance(index, SparseIndex) else index
    names = sorted({_automatic(q, launch) for launch in launches})
    return "+".join(names) or "gather"


def _automatic(q: Tensor, launch: Launch) -> str:
    if not q.is_cuda or find_spec("triton") is None:
        return "gather"
    return "gather" if import_module(".triton", __package__).refusal(q, launch.index, launch.keys) else "triton"


def _function(name: str) -> Callable[..., Any]:
    try:
        return getattr(import_module(f".{name}", __package__), f"{name}_attention")
    except ImportError as error:
        raise ValueError(f"backend {name!r} needs {error.name}, which is not installed; use backend='auto'") from error


def _check(
    q: Tensor, k: Tensor, v: Tensor, index: SparseIndex, causal_shift: int, row_step: int, keys: Keys | None
) -> None:
    """What can be told without reading values, so that no device is waited for."""
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
    keys = keys or Keys()
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
    if causal_shift < 0 or row_step < 1:
        raise ValueError(f"causal_shift must be >= 0 and row_step >= 1, got {causal_shift} and {row_step}")
    if index.slash is not None and keys.key_position is not None:
        raise ValueError("slash needs keys whose positions are their indices; leave out keys.key_position")

"""FLOPs, weights and values of every stage, from a model's parts and the rows that each of them computes.

FLOPs are counted as `torch.utils.flop_counter` counts them: two per multiply-add, attention over every pair of a row
and a key. What a causal kernel or a window leaves out of these is known beside it, as `visible`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

from .tokens import ImageTokens
from .weights import Layer, Matrices, Parts, Tower

CHUNK = 64  # rows that a gated delta rule computes together


@dataclass(frozen=True)
class Work:
    """One piece of work that runs by itself; all but `rows` add up."""

    products: float = 0  # FLOPs of matrix products
    attention: float = 0  # FLOPs of attention over every pair
    visible: float = 0  # of them, those of pairs that a row sees
    weights: float = 0  # parameters read
    values: float = 0  # numbers read and written beside them
    keys: float = 0  # cached numbers read
    blocks: float = 0  # blocks or layers, each with its small operations
    rows: float = 0  # rows of the products

    @property
    def flops(self) -> float:
        return self.products + self.attention


def total(parts: Iterable[Work]) -> Work:
    """Return the sum; `rows` is the largest."""
    works = list(parts)
    sums = {f.name: sum(getattr(w, f.name) for w in works) for f in fields(Work)}
    return Work(**{**sums, "rows": max((w.rows for w in works), default=0)})


def products(matrices: Matrices, rows: float, blocks: int = 0) -> Work:
    """Price `rows` rows through matrices that are read once."""
    flops, values = 2 * matrices.per_row * rows, matrices.values * rows
    return Work(flops, weights=matrices.read(rows), values=values, blocks=blocks, rows=rows)


def vision(tower: Tower, images: Sequence[ImageTokens], share: float = 1.0, batch: int = 1) -> Work:
    """Count the vision tower, all items of all samples together.

    images: of one sample. share: of the patches that are encoded; every window loses its part.
    """
    patches = sum(sum(p.patches) for p in images) * share * batch
    items = sum(len(p.grids) for p in images) * batch
    rows = patches + tower.cls * items
    pairs = 0.0
    for p in images:
        for grid, n in zip(p.grids, p.patches, strict=True):
            seen = n * share + tower.cls
            inside = spread(grid[0], tower.window) * spread(grid[1], tower.window) * share**2 if tower.window else 0
            pairs += tower.whole * seen**2 + (tower.depth - tower.whole) * inside
    attention = 4 * pairs * tower.width * batch
    blocks = products(tower.blocks, rows, tower.depth)
    return total([products(tower.patchify, patches), blocks, Work(attention=attention, visible=attention)])


def spread(side: int, window: int) -> int:
    """Return the sum of the squares of the windows into which a side falls; the last may be smaller."""
    whole, rest = divmod(side, window)
    return whole * window**2 + rest**2


def projection(parts: Parts, images: Sequence[ImageTokens], share: float = 1.0, batch: int = 1) -> Work:
    """Count the projector, all rows of all samples that leave it."""
    return products(parts.projector, sum(p.projected for p in images) * share * batch)


def prefill(parts: Parts, lengths: Sequence[float], batch: int = 1) -> list[Work]:
    """Price every layer over a prompt of `lengths[i]` tokens, what lies beside them, and the logits of the last row.

    Args:
        lengths: tokens of one sample at each layer.
    """
    works = [products(parts.beside, lengths[0] * batch)]
    for layer, n in zip(parts.layers, lengths, strict=True):
        works.append(layer_over(layer, 1 if layer.last_row_only else n, n, batch))
    return [*works, products(parts.head, batch)]


def decode(parts: Parts, lengths: Sequence[float], batch: int = 1) -> list[Work]:
    """Price one generated token of every sample behind `lengths[i]` tokens that each layer holds."""
    works = [products(parts.beside, batch)]
    for layer, n in zip(parts.layers, lengths, strict=True):
        held = min(n + 1, layer.window) if layer.window else n + 1
        works.append(total([layer_over(layer, 1, held, batch), Work(keys=held * per_token(layer) * batch)]))
    return [*works, products(parts.head, batch)]


def layer_over(layer: Layer, rows: float, keys: float, batch: int) -> Work:
    """Price one layer over the last `rows` of `keys` tokens of every sample."""
    made = products(layer.matrices, rows * batch, 1)
    if layer.kind == "recurrent":
        return total([made, Work(2 * delta(layer, rows) * batch, keys=layer.state * batch)])
    seen = causal(keys, layer.window) - causal(keys - rows, layer.window)
    width = 4 * layer.heads * layer.head_dim * batch
    return total([made, Work(attention=width * rows * keys, visible=width * seen)])


def causal(n: float, window: int) -> float:
    """Count pairs of a row and a key that it sees, among n tokens."""
    if not window or n <= window:
        return n * (n + 1) / 2
    return window * (window + 1) / 2 + (n - window) * window


def delta(layer: Layer, rows: float) -> float:
    """Count the multiply-adds of a gated delta rule: in chunks over a prompt, one step of its state for a single row.

    Per chunk and head: two products of the chunk with itself over the keys' width and one over the values', and three
    with the state (Gated Delta Networks, arXiv 2412.06464). The triangular system between them is not counted.
    """
    heads, k, v = layer.delta
    if rows <= 1:
        return 3 * heads * k * v
    chunks = -(-rows // CHUNK)
    return heads * chunks * CHUNK * (CHUNK * (2 * k + v) + 3 * k * v)


def per_token(layer: Layer) -> int:
    """Count the numbers of a token in the cache of a layer, or those that it reads where it uses another's."""
    return 2 * layer.key_heads * layer.head_dim


def cached(parts: Parts, lengths: Sequence[float]) -> float:
    """Count the numbers that one sample keeps in the cache of all layers."""
    held = 0.0
    for layer, n in zip(parts.layers, lengths, strict=True):
        if layer.kind == "recurrent":
            held += layer.state
        elif not layer.shares_keys:
            held += per_token(layer) * (min(n, layer.window) if layer.window else n)
    return held

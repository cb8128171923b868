"""2-D boundary: give each pair of row and key modality a pattern of its own."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from vlmopt.core import setting

from ..sparse_attention.index import Launch
from .base import Pattern, register
from .boundary import CLASSES, check_parts, slots_of
from .dense import DensePattern
from .grid import GridSparse
from .prefill import Prefill
from .vertical_slash import VerticalSlash
from .view import View, ViewPattern


@register("boundary_2d")
@dataclass(frozen=True, kw_only=True)
class Boundary2D(Pattern):
    """Sort rows and keys by modality and build one pattern per pair; each row has one softmax over all its keys.

    MMInference (arXiv 2504.16083), algorithms 3 and 7. Parts are named rows first: `text_vision` is text that looks at
    vision. Inside a part keys count by their running number in their modality, and rows by that of their last visible
    key, so a distance of one frame stays the same where timestamps of any length stand between frames. A part is left
    out by `AShape(sink=0, local=0)`. `tile` and `run` are those of parts that are not given.
    """

    reads = "last rows of each modality"

    text_text: ViewPattern | None = field(
        default=None, metadata={"help": "Pattern of text rows on text keys; if not given: dense."}
    )
    text_vision: ViewPattern | None = field(
        default=None, metadata={"help": "Text rows on vision keys; if not given: vertical_slash, dense over few keys."}
    )
    vision_text: ViewPattern | None = field(
        default=None, metadata={"help": "Vision rows on text keys; if not given: vertical_slash, dense over few keys."}
    )
    vision_vision: ViewPattern | None = field(
        default=None, metadata={"help": "Vision rows on vision keys; if not given: grid."}
    )
    dense_below: int = setting(
        4096, "A part between modalities that is not given is dense over fewer keys.", "int", min=0
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_parts(self)

    @property
    def is_identity(self) -> bool:
        return all(self.part(a, b, self.dense_below).is_identity for a in CLASSES for b in CLASSES)

    def part(self, rows: str, keys: str, count: int) -> ViewPattern:
        """Return the pattern of a pair of "text" and "vision" with `count` keys."""
        given: ViewPattern | None = getattr(self, f"{rows}_{keys}")
        if given is not None:
            return given
        kind: type[ViewPattern] = VerticalSlash
        if rows == keys == "vision":
            kind = GridSparse
        elif rows == keys or count < self.dense_below:
            kind = DensePattern
        return kind(tile=self.tile, run=self.run)

    def build(self, prefill: Prefill) -> list[Launch]:
        rows, keys = slots_of(prefill, self.name)
        row_kinds = [i for i, r in enumerate(rows) if r.shape[1]]
        launches = []
        for i in row_kinds:
            these = None if len(row_kinds) == 1 else rows[i]
            launches += self._of_rows(prefill, CLASSES[i], these, keys)
        return launches

    def _of_rows(self, prefill: Prefill, kind: str, rows: Tensor | None, keys: list[Tensor]) -> list[Launch]:
        parts = [(c, k, self.part(kind, c, k.shape[1])) for c, k in zip(CLASSES, keys, strict=True) if k.shape[1]]
        if len(parts) == 1 or all(part.is_identity for *_, part in parts):  # all keys: no order of their own is needed
            return parts[0][2].select(View(prefill, rows=rows, consecutive=rows is None))
        views = [(part, View(prefill, rows=rows, keys=k, consecutive=c == kind)) for c, k, part in parts]
        return [launch for part, view in views for launch in part.select(view)]

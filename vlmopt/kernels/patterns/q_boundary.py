"""Q-boundary: give rows of text and of vision a pattern of their own."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..sparse_attention.index import Launch
from .base import Pattern, register
from .boundary import CLASSES, check_parts, join_rows, slots_of
from .dense import DensePattern
from .prefill import Prefill
from .vertical_slash import VerticalSlash
from .view import View, ViewPattern


@register("q_boundary")
@dataclass(frozen=True, kw_only=True)
class QBoundary(Pattern):
    """Sort the rows by modality and build one pattern per modality, over all keys.

    MMInference (arXiv 2504.16083), algorithms 2 and 6. Estimates come from the last rows of the same modality;
    distances are those of the prompt, whatever stands in between. Modality 0 is text, all others are vision. `tile`
    and `run` are those of parts that are not given.
    """

    reads = "last rows of each modality"

    text: ViewPattern | None = field(default=None, metadata={"help": "Pattern of rows of text; if not given: dense."})
    vision: ViewPattern | None = field(
        default=None, metadata={"help": "Pattern of rows of vision; if not given: vertical_slash."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_parts(self)

    @property
    def is_identity(self) -> bool:
        return all(self.part(c).is_identity for c in CLASSES)

    def part(self, rows: str) -> ViewPattern:
        """Return the pattern of the rows of "text" or "vision"."""
        open_part = DensePattern if rows == "text" else VerticalSlash
        part: ViewPattern | None = getattr(self, rows)
        return part or open_part(tile=self.tile, run=self.run)

    def build(self, prefill: Prefill) -> list[Launch]:
        rows, _ = slots_of(prefill, self.name)
        present = [i for i, r in enumerate(rows) if r.shape[1]]
        if len(present) == 1:
            return self.part(CLASSES[present[0]]).build(prefill)
        views = [(CLASSES[i], View(prefill, rows=rows[i], consecutive=False)) for i in present]
        return join_rows([launch for name, view in views for launch in self.part(name).select(view)])

"""Budget rules of released code that differ from ours and are shared by several methods."""

from __future__ import annotations

from dataclasses import dataclass

from vlmopt.core.settings import setting

from .base import Selector


@dataclass(frozen=True, kw_only=True)
class OnePool(Selector):
    """With `paper_compat`: one pool for all pictures, and Python's rounding of halves to the even number."""

    paper_compat: bool = setting(
        False, "As released: one pool for all pictures, halves rounded to the even number.", "bool"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.paper_compat:
            object.__setattr__(self, "allocation", "global")

    def budget(self, total: int) -> int:
        if self.paper_compat and self.keep_ratio is not None:
            return max(round(self.keep_ratio * total), 1)
        return super().budget(total)

"""Rules of released code that differ from ours and that several methods share."""

from __future__ import annotations

from dataclasses import dataclass

from vlmopt.core.settings import setting

from .base import Selector


def rounded_down(keep_ratio: float, total: int) -> int:
    """Return keep_ratio * total without its fraction, at least 1; products such as 0.29 * 100 = 28.999... are 29."""
    return max(int(keep_ratio * total + 1e-9), 1)


class Renumbered:
    """Mixin of a `Selector`: with `paper_compat` survivors are renumbered, unless `positions` says otherwise."""

    positions: str | None
    paper_compat: bool

    @property
    def numbering(self) -> str:
        """What becomes of positions: "keep", "repack" or "pospad"."""
        return self.positions or ("repack" if self.paper_compat else "keep")


@dataclass(frozen=True, kw_only=True)
class OnePool(Selector):
    """Mixin: with `paper_compat` all images form one pool, and halves are rounded to the even number."""

    paper_compat: bool = setting(
        False, "As released: one pool for all images, halves rounded to the even number.", "bool"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.paper_compat and self.allocation not in ("proportional", "global"):  # the default, and what it becomes
            raise ValueError(
                f"{self.label}: paper_compat=True is one pool for all images, got allocation={self.allocation!r}; "
                "leave one out"
            )
        if self.paper_compat:
            object.__setattr__(self, "allocation", "global")

    def budget(self, total: int) -> int:
        if self.paper_compat and self.keep_ratio is not None:
            return max(round(self.keep_ratio * total), 1)
        return super().budget(total)

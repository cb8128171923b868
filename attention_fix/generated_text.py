"""IAT: make the model attend more to what it has written, while it writes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from vlmopt.core import setting

from .base import RowCorrection, RowView, register
from .boost import TEXT_BOOST, boosted
from .watchdog import Watched


@register("generated_text")
@dataclass(frozen=True, kw_only=True)
class GeneratedText(Watched, RowCorrection):
    """Add alpha |z| to the logits z of generated tokens, in the row that predicts the next one (IAT).

    arXiv 2603.04908, the method without adaptation. The first token of an answer is not touched: nothing is generated
    yet.
    """

    stage: ClassVar[str] = "logits"
    rows: ClassVar[str] = "last"
    group: ClassVar[str] = TEXT_BOOST

    layers: str = setting("16%:56%", "Decoder layers, as indices and slices; the paper's are 5..17 of 32.", "str")
    alpha: float = setting(0.8, "Strength, as a fraction of |z|.", "float", min=0, max=2)

    @property
    def is_identity(self) -> bool:
        return self.alpha == 0

    def edit(self, values: Tensor, view: RowView) -> tuple[Tensor, Tensor]:
        return boosted(values, self.alpha, view, view.generated)

"""What AdaIAT knows of a model: how much it attends to its own text before real and before invented objects."""

from __future__ import annotations

from dataclasses import MISSING, dataclass
from typing import ClassVar

from vlmopt.core import setting

from .profile import ModelProfile, table


@dataclass(frozen=True, kw_only=True)
class IATProfile(ModelProfile):
    """Attention from rows that predict object words to generated text, for real and for hallucinated objects.

    AdaIAT (arXiv 2603.04908); `samples` are captions.

    Raises:
        TypeError, ValueError: as the base; tables that do not fit the model, or hold other numbers than they may.
    """

    label: ClassVar[str] = "IAT profile"
    facts: ClassVar[tuple[str, ...]] = ("layers", "num_heads")

    hallucinated: tuple[float, ...] = setting(
        MISSING, "By layer: mean weight of a generated key, summed over heads; hallucinated objects.", "floats", min=0
    )
    real: tuple[float, ...] = setting(MISSING, "By layer: the same of real objects.", "floats", min=0)
    ratios: tuple[tuple[float, ...], ...]  # [layer][head]: weight of generated keys, real over hallucinated, >= 0

    def __post_init__(self) -> None:
        super().__post_init__()
        depth = self.model["layers"]
        for name in ("hallucinated", "real"):
            if len(getattr(self, name)) != depth:
                raise ValueError(f"{self.label}: {name} must be {depth} numbers, got {len(getattr(self, name))}")
        ratios = table(self.ratios, (depth, self.model["num_heads"]), None, f"{self.label}: ratios")
        object.__setattr__(self, "ratios", ratios)

    def threshold(self, layer: int, beta: float) -> float:
        """Return the attention below which the layer is corrected: hallucinated + beta (real - hallucinated)."""
        low = self.hallucinated[layer]
        return low + beta * (self.real[layer] - low)

"""What an eviction may know of the keys and values that one layer holds when the prompt is over."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import normalize


@dataclass(frozen=True, eq=False)
class Probe:
    """The attention of some of the prompt's last rows to every stored key."""

    weights: Tensor  # fp32 [B, H, R, n], rows sum to 1, 0 on padding
    rows: Tensor  # Bool[B, R]: rows that count; a sample may have fewer than another
    visible: Tensor  # Bool[B, 1|Hk, R, n]: keys that a row may see


@dataclass(frozen=True, eq=False)
class KVView:
    """One layer's cache. Hk key-value heads; a table with one head in their place holds for all of them."""

    keys: Tensor  # [B, Hk, n, D] as stored, so after rotation where the model rotates
    values: Tensor  # [B, Hk, n, Dv]
    real: Tensor  # Bool[B, 1|Hk, n]: False on padding and fillers
    places: Tensor  # Long[B, 1|Hk, n]: running number in the sample's sequence; < 0 on padding before it
    layer: int
    seed: int
    probe: Probe | None = None  # None where the method reads no rows
    neighbours: Tensor | None = None  # Long[B, 1|Hk, n, 9]: slots of the 3 x 3 cells around a visual key, -1: none

    @property
    def heads(self) -> int:
        return self.keys.shape[1]

    @property
    def attention(self) -> Probe:
        """The probed rows.

        Raises:
            ValueError: the method asked for none.
        """
        if self.probe is None:
            raise ValueError("no attention was read for this method: let its `rows` say which rows it reads")
        return self.probe

    def of_heads(self, values: Tensor) -> Tensor:
        """Return values [B, H, ...] of query heads as the mean over those that share a key-value head, [B, Hk, ...]."""
        mean: Tensor = values.unflatten(1, (self.heads, -1)).mean(2)
        return mean

    def unit_keys(self) -> Tensor:
        """Return fp32 [B, Hk, n, D]: normalised keys, zeros where no key is real."""
        unit: Tensor = normalize(self.keys.float(), dim=-1) * self.real[..., None]
        return unit

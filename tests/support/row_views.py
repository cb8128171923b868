"""What corrections of rows are told, made by hand, and plain attention in fp64 to compare them with."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from vlmopt.attention_fix import HeadProfile, IATProfile, RowCorrection, RowView

Keys = Iterable[int] | Tensor
FACTS = {"model_type": "tiny", "hidden_size": 32, "layers": 6, "num_heads": 4, "name_or_path": "somewhere/tiny"}


def flags(keys: Keys, batch: int, width: int) -> Tensor:
    """Bool[batch, width] from the same numbers for every sample, or as given."""
    if isinstance(keys, Tensor):
        return keys
    return torch.tensor([[key in tuple(keys) for key in range(width)]] * batch)


def seen(
    width: int,
    *,
    batch: int = 1,
    rows: int = 1,
    image: Keys = (),
    system: Keys = (),
    generated: Keys = (),
    allowed: Tensor | None = None,
    may: Tensor | None = None,
    layer: int = 3,
    **marks: Keys,
) -> RowView:
    """A view of the last `rows` rows; everything is allowed and every row may be edited unless said otherwise."""
    images = flags(image, batch, width)
    return RowView(
        layer=layer,
        depth=6,
        allowed=torch.ones(1, 1, rows, width, dtype=torch.bool) if allowed is None else allowed,
        rows=torch.ones(batch, rows, dtype=torch.bool) if may is None else may,
        image=images,
        span=images.long() - 1,
        system=flags(system, batch, width),
        generated=flags(generated, batch, width),
        marks={name: flags(keys, batch, width) for name, keys in marks.items()},
    )


def edited(correction: RowCorrection, values: list[float], view: RowView) -> list[float]:
    """One row of one head after the edit, as plain numbers; as it was if the correction leaves it alone."""
    row = torch.tensor(values, dtype=torch.float64)[None, None, None]
    after, changed = correction.edit(row, view)
    return (after if changed.item() else row).flatten().tolist()


def close(got: list[float], want: list[float], tolerance: float = 1e-12) -> bool:
    return len(got) == len(want) and all(abs(a - b) <= tolerance for a, b in zip(got, want, strict=True))


def head_profile(seed: int = 0, **facts: object) -> HeadProfile:
    """Random numbers for the model of `FACTS`."""
    tables = torch.rand(3, 6, 4, generator=torch.Generator().manual_seed(seed)).tolist()
    names = ("visual_mass", "nonsink_mass", "divergence")
    return HeadProfile(model={**FACTS, **facts}, samples=8, **dict(zip(names, tables, strict=True)))


def iat_profile(hallucinated: float = 0.1, real: float = 0.3, ratios: object = None) -> IATProfile:
    """The same numbers in each of the six layers of the model of `FACTS`."""
    rows = [[1.5, 1.2, 1.0, 0.9]] * 6 if ratios is None else ratios
    return IATProfile(model=FACTS, samples=100, hallucinated=[hallucinated] * 6, real=[real] * 6, ratios=rows)

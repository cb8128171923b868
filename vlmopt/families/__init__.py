"""The families that vlmopt knows, as data. An undescribed family takes the generic path and the report says so."""

from __future__ import annotations

from typing import Any

from ..choices import UNITS
from . import native, queries, tiled
from .base import Family, Piece

_FAMILIES = (*native.FAMILIES, *tiled.FAMILIES, *queries.FAMILIES)


def families() -> dict[str, Family]:
    """Return the described families by name."""
    return {family.name: family for family in _FAMILIES}


def family_of(config: Any) -> Family:
    """Return the family of a model config; an undescribed one gets the generic description."""
    kind = getattr(config, "model_type", None)
    for family in _FAMILIES:
        if kind in family.model_types:
            return family
    return Family(str(kind), (str(kind),), "", "", "", described=False)


def click_units(config: Any) -> str | None:
    """Return the units of coordinates in a model's answers, by its config (`click_units`) or family; None: unknown.

    Raises:
        ValueError: the config says something that is none of `choices.UNITS`.
    """
    own: str | None = getattr(config, "click_units", None)
    if own is not None and own not in UNITS:
        raise ValueError(f"click_units={own!r} in the model's config is unknown: choose from {', '.join(UNITS)}")
    return own or family_of(config).click_units


__all__ = ["Family", "Piece", "click_units", "families", "family_of"]

"""Check the parts of a policy one by one, and build those that are given as data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vlmopt.core import check_depth, near, shown

from .. import methods
from ..kernels.patterns import Pattern
from ..kv import Eviction
from ..prefill import SparsePrefill
from ..reading import SparseReading
from ..version import __version__


def check_format(data: Any, keys: Sequence[str], newest: int) -> None:
    """Refuse a dict form with keys that no policy has, or of a format that only later versions read."""
    if not isinstance(data, Mapping):
        raise TypeError(f"a policy must be a dict, got {shown(data)} of type {type(data).__name__}")
    check_depth(data)
    version = data.get("format", newest)
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise ValueError(f"format must be a whole number from 1 to {newest}, got {shown(version)}")
    if version > newest:
        raise ValueError(
            f"this policy has format {shown(version)}, written by vlmopt {data.get('vlmopt', '?')!s:.20}; "
            f"vlmopt {__version__} reads up to format {newest}. Upgrade vlmopt."
        )
    for key in data:
        if key not in keys:
            hint = near(str(key), [*keys, "method"])  # of a policy, or of a single method
            raise ValueError(f"unknown policy key {shown(key)}{hint}; keys: {', '.join(keys)}")


def methods_of(key: str, given: Any) -> list[methods.Method]:
    """Build the methods of a list of dict forms; raise `TypeError` for anything else."""
    if not isinstance(given, (list, tuple)):
        raise TypeError(f"{key} must be a list of methods, got {shown(given)} of type {type(given).__name__}")
    return [methods.build(entry) for entry in given]


def entries(key: str, given: Any, kind: type) -> tuple[Any, ...]:
    """Return a tuple of methods of one kind; raise `TypeError` for anything else."""
    if not isinstance(given, (list, tuple)):
        raise TypeError(f"{key} must be a list of {kind.__name__}s, got {shown(given)} of type {type(given).__name__}")
    for method in given:
        if not isinstance(method, kind):
            raise TypeError(
                f"{key} may hold {kind.__name__}s only, got {shown(method)} of type {type(method).__name__}"
            )
    return tuple(given)


def only(items: Sequence[Any], kind: type | tuple[type, ...], what: str) -> Any:
    """Return the item of a kind, None without one; raise `ValueError` for several."""
    found = [item for item in items if isinstance(item, kind)]
    if len(found) > 1:
        raise ValueError(f"a policy has one {what}, got {len(found)}: {found!r}")
    return found[0] if found else None


def prefill_of(given: Any) -> SparsePrefill | None:
    """Make sparse prefill of a pattern, `SparsePrefill`, the dict form of either, or None."""
    if given is None or isinstance(given, SparsePrefill):
        return given
    if isinstance(given, Mapping):
        return SparsePrefill.from_dict(given)
    if isinstance(given, Pattern):
        return SparsePrefill(pattern=given)
    raise TypeError(
        f"prefill must be a pattern such as MinP(), SparsePrefill, or their dict form, got {shown(given)} of type "
        f"{type(given).__name__}"
    )


def reading_of(given: Any) -> SparseReading | None:
    """Make sparse reading of its dict form; None stays None."""
    if given is None or isinstance(given, SparseReading):
        return given
    if isinstance(given, Mapping):
        return SparseReading.from_dict(given)
    raise TypeError(f"read must be SparseReading or its dict form, got {shown(given)} of type {type(given).__name__}")


def eviction_of(given: Any) -> Eviction | None:
    """Make an eviction of its dict form; None stays None."""
    method = methods.build(given) if isinstance(given, Mapping) else given
    if method is None or isinstance(method, Eviction):
        return method
    raise TypeError(
        f"kv must be an eviction such as SnapKV(), or its dict form, got {shown(given)} of type {type(given).__name__}"
    )

"""Results of two separate computations, as far as they are promised to agree."""

from __future__ import annotations

from typing import Any

import pytest


def assert_same(left: Any, right: Any) -> None:
    """Assert that two JSON values are equal; two forwards of one prompt may differ in the last bits of a float."""
    assert type(left) is type(right)
    if isinstance(left, dict):
        assert left.keys() == right.keys()
        for key in left:
            assert_same(left[key], right[key])
    elif isinstance(left, list):
        assert len(left) == len(right)
        for one, other in zip(left, right, strict=True):
            assert_same(one, other)
    elif isinstance(left, float):
        assert left == pytest.approx(right, rel=1e-4, abs=1e-5)
    else:
        assert left == right

"""Measured numbers that a correction needs: kept per device, and read from a profile."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vlmopt.core import MeasuredProfile


class OnDevice(dict[torch.device, Tensor]):
    """One tensor on several devices, copied at its first use on each and kept: no decoding step waits for a copy."""

    def __init__(self, tensor: Tensor) -> None:
        super().__init__({tensor.device: tensor})
        self.tensor = tensor

    def __missing__(self, device: torch.device) -> Tensor:
        self[device] = self.tensor.to(device)
        return self[device]


def read_profile(correction: Any, name: str, kind: type[MeasuredProfile], *, required: bool = False) -> None:
    """Turn the dict form of a profile in the field `name` of a frozen correction into the profile.

    Raises:
        TypeError: neither a profile nor a dict, nor None where it may be missing. ValueError: no valid dict form.
    """
    value = getattr(correction, name)
    if isinstance(value, Mapping):
        value = kind.from_dict(value)
        object.__setattr__(correction, name, value)
    if not isinstance(value, kind) and (required or value is not None):
        given = f"{value!r} of type {type(value).__name__}"
        raise TypeError(f"{correction.name}: {name} must be {kind.__name__} or its dict form, got {given}")

"""The settings of `--model_args`, checked, and the model that they name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from accelerate import Accelerator

from ...checkpoints import check_name, load_checkpoint
from ...checkpoints.processor import FAILURES, first_line
from ...choices import DTYPES
from ...core import near
from ...loading import Loaded, load

SETTINGS = (
    "pretrained", "policy", "device", "dtype", "device_map", "batch_size", "min_pixels", "max_pixels", "max_frames",
)  # fmt: skip


def refuse_unknown(unknown: Mapping[str, Any]) -> None:
    """Refuse unknown settings.

    Raises:
        ValueError: there is any.
    """
    for name in unknown:
        raise ValueError(f"unknown model argument {name!r}{near(name, list(SETTINGS))}; known: {', '.join(SETTINGS)}")


def whole(name: str, value: Any, least: int) -> int:
    """Read a whole number; lmms-eval hands the batch size over as text.

    Raises:
        ValueError: it is none, or too small.
    """
    try:
        number = int(str(value))
    except ValueError:
        raise ValueError(f"{name} must be a whole number, got {value!r}") from None
    if number < least:
        raise ValueError(f"{name} must be {least} or more, got {number}")
    return number


def load_model(name: str, device: str, dtype: str, device_map: str | None, accelerator: Accelerator) -> Loaded:
    """Load a model on the device asked for, on this process's own where there are several, or spread over all.

    Raises:
        ValueError: it cannot be loaded, or not like that.
    """
    several = accelerator.num_processes > 1
    if device_map is None:
        if several and device not in ("auto", "cpu", "cuda"):
            raise ValueError(f"device={device} would hold {accelerator.num_processes} replicas; leave it out")
        return load(name, device=str(accelerator.device) if several else device, dtype=dtype)
    if device_map != "auto" or device != "auto" or several:
        raise ValueError(
            f"device_map={device_map!r} with device={device!r} and {accelerator.num_processes} processes: "
            "device_map=auto spreads one replica over all devices, from one process and without device"
        )
    check_name(name)
    if dtype not in DTYPES:
        raise ValueError(f"unknown dtype {dtype!r}; choose one of {', '.join(DTYPES)}")
    try:
        model, processor = load_checkpoint(name, dtype=dtype, device_map=device_map)
    except FAILURES as error:
        raise ValueError(f"{name} cannot be spread over the devices: {first_line(error)}") from error
    return Loaded(name, model, processor)

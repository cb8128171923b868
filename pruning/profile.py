"""Positional trends that were measured before: profiles of the user's own models, and the published ones."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from vlmopt.core import MeasuredProfile, parse, setting

from .tokens import VisualTokens
from .trend import LIMITS, frame_place, grid_place, raster_place

Z = 1.96  # of a 95 % interval


@dataclass(frozen=True, kw_only=True)
class DebiasProfile(MeasuredProfile):
    """Positional trend of a host's scores on one model: exp(sigma * x), what was measured, and on what.

    Raises:
        TypeError, ValueError: a value of the wrong type or out of range; a number of slopes that does not fit `axes`.
    """

    label: ClassVar[str] = "debias profile"

    host: str = setting(MISSING, "Registered name of the method whose scores were measured.", "str")
    layer: int = setting(MISSING, "Layer before which the host cuts, at its first stage.", "int", min=0)
    sigma: tuple[float, ...] = setting(MISSING, "Slope over the raster place, or over t, y and x.", "floats")
    queries: str = setting(MISSING, "Prompt rows whose attention was read, in words.", "str")
    head_reduction: str = setting(MISSING, "How heads were reduced, in words.", "str")
    axes: str = setting("raster", "Coordinates of sigma.", "str", choices=("raster", "thw"))
    across_frames: float | None = setting(
        None, "Slope over the frames of a video; sigma is then the slope inside a frame. Raster only.", "float"
    )
    error: tuple[float, ...] = setting(
        (), "Standard error of every slope, over samples; empty where it is not known.", "floats", min=0
    )
    mu: float | None = setting(None, "Score at the first place; of no consequence for a ranking.", "float", above=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        wanted = 1 if self.axes == "raster" else 3
        if len(self.sigma) != wanted:
            raise ValueError(f"debias profile: axes={self.axes!r} takes {wanted} slopes in sigma, got {self.sigma!r}")
        if len(self.error) not in (0, wanted):
            raise ValueError(f"debias profile: error={self.error!r} must be empty or hold as many numbers as sigma")
        if self.across_frames is not None and self.axes != "raster":
            raise ValueError("debias profile: across_frames is for axes='raster'; with 'thw' it is the first of sigma")

    def check(self, host: str, layer: int, model: Mapping[str, Any] | None = None) -> None:
        """Compare with the place of use; a model's `name_or_path` may differ, since copies have others.

        Raises:
            ValueError: naming everything that differs.
        """
        here = (("host", self.host, host), ("layer", self.layer, layer))
        self.refuse_others(*here, model=model, way_out="Measure anew, or force it")

    @property
    def slopes(self) -> str:
        """Every slope with its standard error, in words."""
        errors = [f" ± {error:.3f}" for error in self.error] or [""] * len(self.sigma)
        return ", ".join(f"{value:+.3f}{error}" for value, error in zip(self.sigma, errors, strict=True))

    @property
    def doubts(self) -> tuple[str, ...]:
        """Reasons not to use it: slopes whose 95 % interval spans 0."""
        axes = ("t", "y", "x") if self.axes == "thw" else ("the place in the image",)
        return tuple(
            f"{self.host} before layer {self.layer}: the slope over {axis} is {value:+.3f} ± {error:.3f} (standard "
            f"error over {self.samples} samples) and may be 0: measure on more images, or do not debias by it"
            for axis, value, error in zip(axes, self.sigma, self.error, strict=False)
            if error > 0 and abs(value) < Z * error
        )

    def log(self, tokens: VisualTokens) -> Tensor:
        """Return fp32 [n]: logarithm of the trend, up to a constant; slopes beyond `LIMITS` are clipped."""
        sigma = [min(max(value, LIMITS[0]), LIMITS[1]) for value in (*self.sigma, self.across_frames or 0.0)]
        if self.axes == "thw":
            place = grid_place(tokens)  # [n, 3]
            return sigma[0] * place[:, 0] + sigma[1] * place[:, 1] + sigma[2] * place[:, 2]
        if self.across_frames is None:
            return sigma[0] * raster_place(tokens)
        return sigma[0] * frame_place(tokens) + sigma[1] * grid_place(tokens)[:, 0]

    def to_dict(self) -> dict[str, Any]:
        """Return a complete, JSON-ready dict."""
        data = super().to_dict()
        return data if self.error else {k: v for k, v in data.items() if k != "error"}  # as earlier versions wrote it

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write a JSON file; return its path."""
        file = Path(path)
        file.write_text(json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n", encoding="utf-8")
        return file

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> DebiasProfile:
        """Read a file written by `save`.

        Raises:
            ValueError: the file cannot be read, or holds no valid profile.
        """
        try:
            if not Path(path).is_file():
                raise ValueError("it is missing, or not a regular file")  # a pipe could be waited for for ever
            return cls.from_dict(parse(Path(path).read_text(encoding="utf-8")))
        except (OSError, TypeError, ValueError) as error:
            raise ValueError(f"{path} holds no debias profile: {error}") from error


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A published trend: exp(sigma * x), or 1 + c1 * x + c2 * x^2 + c3 * x^3."""

    host: str  # the method it was measured on
    origin: str
    sigma: float = 0.0
    cubic: tuple[float, float, float] | None = None

    def log(self, x: Tensor) -> Tensor:
        """Return fp32 [n]: logarithm of the trend at places x [n] in 0..1."""
        if self.cubic is None:
            return self.sigma * x
        first, second, third = self.cubic
        return (x * (first + x * (second + x * third))).log1p()


TABLE = "LLaVA-1.5 mean of 10 data sets, from the released weights"
PRESETS = {
    "paper_fastv": Preset(
        host="fastv",
        origin="LLaVA-1.5, released weights, the same for all data sets and not exponential",
        cubic=(3.01519760e-3 * 576, -1.45979083e-5 * 576**2, 2.56911352e-8 * 576**3),
    ),
    "fastv_exponential": Preset(host="fastv", origin="LLaVA-1.5, exponential near the released weights", sigma=0.9),
    "himap": Preset(host="himap", origin=TABLE, sigma=1.073),
    "pyramid_drop": Preset(host="pyramid_drop", origin=TABLE, sigma=1.890),
    "sparse_vlm": Preset(host="sparse_vlm", origin=TABLE, sigma=1.945),
    "tokencarve": Preset(host="tokencarve", origin=TABLE, sigma=0.832),
}


def published(host: str) -> Preset | None:
    """Return the first preset that was measured on the method `host`."""
    return next((preset for preset in PRESETS.values() if preset.host == host), None)

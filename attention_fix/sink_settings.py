"""Which tokens count as sinks: settings that corrections and diagnoses of sinks share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from torch import Tensor

from vlmopt.core import setting

from .base import Correction
from .measured import read_profile
from .profile import SinkProfile, check_dims
from .sink_scores import auto_tau, published_dims, sink_mask, sink_scores

Settings = TypeVar("Settings", bound="SinkSettings")


@dataclass(frozen=True, kw_only=True)
class SinkSettings(Correction):
    """Base of methods that look for sinks by hidden dimensions: given, measured or published.

    Raises:
        TypeError, ValueError: a setting out of range, or a profile together with dims or tau.
    """

    dims: tuple[int, ...] = setting((), "Sink dimensions; empty: the published ones of the model.", "ints", min=0)
    tau: float | None = setting(
        None, "A token is a sink from this |x_c| / rms(x) on; none: 0.3125 sqrt(hidden size).", "float", above=0
    )
    profile: SinkProfile | None = field(
        default=None,
        metadata={"help": "Measured dims and tau of this model, or their dict form; replaces both settings."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        read_profile(self, "profile", SinkProfile)
        if self.profile is not None and (self.dims or self.tau is not None):
            raise ValueError(
                f"{self.name}: a profile holds dims and tau, got dims={self.dims!r} and tau={self.tau!r} as well; give "
                "one or the other"
            )

    @property
    def source(self) -> str | None:
        return None if self.profile is None else self.profile.source

    @property
    def sink_dims(self) -> tuple[int, ...]:
        """The dimensions of the profile, or else of the settings; empty if neither has any."""
        return self.dims if self.profile is None else self.profile.dims

    def check_model(self, model: Mapping[str, Any]) -> None:
        if self.profile is not None:
            self.profile.check(model)
        elif dims := self.dims or published_dims(model):
            check_dims(dims, self.tau, model["hidden_size"], self.name)

    def for_model(self: Settings, model: Mapping[str, Any]) -> Settings:
        """Return the same with the published dimensions of the model, where none are set or measured."""
        self.check_model(model)
        known = None if self.dims or self.profile is not None else published_dims(model)
        return self if known is None else replace(self, dims=known)

    def threshold(self, hidden_size: int) -> float:
        """Return tau for a model of this width."""
        tau = self.tau if self.profile is None else self.profile.tau
        return auto_tau(hidden_size) if tau is None else tau

    def sinks(self, hidden: Tensor) -> Tensor:
        """Return Bool[B, N]: which tokens of the residual stream [B, N, D] are sinks.

        Raises:
            ValueError: no dimensions are known.
        """
        if not self.sink_dims:
            raise ValueError(f"{self.name}: no sink dimensions; give dims or a profile, or take those of `for_model`")
        return sink_mask(sink_scores(hidden, self.sink_dims), self.threshold(hidden.shape[-1]))

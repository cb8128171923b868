"""Attention debiasing: a host's own choice, by scores without their positional trend."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar, cast

from torch import Tensor

from vlmopt.core.settings import setting

from .base import ScoreSelector, Selector, register
from .profile import PRESETS, DebiasProfile, Preset, published
from .signals import Signal
from .tokens import Selection, VisualTokens
from .trend import fit_axes, fit_robust, grid_place, raster_place, rope_trend

Kind = TypeVar("Kind", bound=type)

FITS = {  # what each may be told about the trend
    "preset": ("sigma", "preset"),
    "offline": ("profile",),
    "per_sample": ("sigma", "preset", "profile"),
    "rope_kernel": ("rope_base", "head_dim"),
    "subtract": ("sigma", "preset", "profile"),
}


def mirrors_host(cls: Kind) -> Kind:
    """Decorate `Debias`: give it every setting that all selectors share, to be read off the host."""
    for shared in fields(Selector):
        mirrored: Any = field(init=False, repr=False, compare=False, metadata={"help": "That of the host."})
        setattr(cls, shared.name, mirrored)
        cls.__annotations__[shared.name] = shared.type
    return cls


@register("debias")
@dataclass(frozen=True, kw_only=True)
@mirrors_host
class Debias(ScoreSelector):
    """Divide the host's attention scores by exp(sigma * x), x in 0..1 the place in the image; the host then chooses.

    Attention Debiasing for Token Pruning in Vision Language Models (arXiv 2508.17807): score_i / f(x_i). Attention of
    text inside the LLM rises towards late tokens whatever they show. Budget, layer and all else are the host's; padding
    is suppressed by the host's own `padding="square"`. A progressive host is corrected at its first stage, as in the
    released code.

    A trend along the frames of a video (`across_frames` of a profile) is divided out, too: it matters where frames
    compete in one ranking, and never reaches the allocation of budgets, which reads no attention.

    Raises:
        TypeError: the host is no `ScoreSelector`. ValueError: its scores have no trend, or what is known of the trend
            is missing, given twice, of no use to `fit`, or measured elsewhere.
    """

    reads = "what its host reads"
    query_aware = True  # attention of the prompt inside the LLM

    host: ScoreSelector = field(kw_only=False, metadata={"help": "The method whose scores are corrected."})
    fit: str = setting(
        "preset",
        "Where the trend comes from: preset: published or given as sigma; offline: a measured profile; per_sample: the "
        "sample's own scores, robustly; rope_kernel: rotary positions alone; subtract: subtracts it, for ablations.",
        "str",
        choices=tuple(FITS),
    )
    sigma: float | None = setting(
        None, "The slope, given by hand: late tokens have exp(sigma) times the score.", "float", min=-0.5, max=3
    )
    preset: str | None = setting(
        None,
        "A published trend; if neither it nor sigma is given, the one published for the host.",
        "str",
        choices=tuple(PRESETS),
    )
    profile: DebiasProfile | None = field(default=None, metadata={"help": "A measured trend, or its dict form."})
    force: bool = setting(False, "Use a profile that was measured on another model, host or layer.", "bool")
    axes: str = setting(
        "raster",
        "Coordinates for per_sample: raster: the place in the sequence; thw: frame, row and column, for M-RoPE.",
        "str",
        choices=("raster", "thw"),
    )
    shrink: float = setting(
        0.5,
        "per_sample: share of the known trend (none without one) in the mixture with the sample's own.",
        "float",
        min=0,
        max=1,
    )
    rope_base: float | None = setting(None, "rope_kernel: the LLM's rope_theta.", "float", above=1)
    head_dim: int | None = setting(None, "rope_kernel: width of a head of the LLM.", "int", min=2)
    rope_gap: int = setting(
        30, "rope_kernel: prompt tokens from the last visual token to the question's end.", "int", min=1
    )

    def __post_init__(self) -> None:
        if isinstance(self.host, Debias):
            raise ValueError("debias: the host is debiased already; give the method inside it")
        if not isinstance(self.host, ScoreSelector):
            raise TypeError(f"debias: the host must be a method that ranks by scores, such as FastV, got {self.host!r}")
        if not self.host.trend:
            raise ValueError(
                f"debias: scores of {self.host.name!r} are not attention inside the LLM and have no positional trend; "
                f"use {self.host.name!r} alone, with padding='square' if images are padded"
            )
        for f in fields(Selector):
            object.__setattr__(self, f.name, getattr(self.host, f.name))
        object.__setattr__(self, "adaptive", self.host.adaptive)
        super().__post_init__()
        if isinstance(self.profile, Mapping):
            object.__setattr__(self, "profile", DebiasProfile.from_dict(self.profile))
        if not isinstance(self.profile, (DebiasProfile, type(None))):
            raise TypeError(f"debias: profile must be a DebiasProfile or its dict form, got {self.profile!r}")
        self.check_sources()

    def check_sources(self) -> None:
        """Raise `ValueError` unless the trend is known well enough, stated once, and of use."""
        sources = ("sigma", "preset", "profile", "rope_base", "head_dim")
        given = [name for name in sources if getattr(self, name) is not None]
        if useless := [name for name in given if name not in FITS[self.fit]]:
            raise ValueError(f"debias: fit={self.fit!r} has no use for {useless}; it takes {list(FITS[self.fit])}")
        if self.fit == "rope_kernel":
            self.rotary()
        elif self.fit == "offline":
            if self.profile is None:
                raise ValueError("debias: fit='offline' needs ['profile']")
        elif len(given) > 1:
            raise ValueError(f"debias: the trend is given twice, by {given}; give one of them")
        elif not given and self.fit != "per_sample":
            self.published()
        if self.axes == "thw" and (self.fit != "per_sample" or "sigma" in given or "preset" in given):
            raise ValueError("debias: axes='thw' is for fit='per_sample' without sigma and preset, which are raster")
        if self.fit == "per_sample" and self.profile and self.profile.axes != self.axes:
            raise ValueError(f"debias: axes={self.axes!r}, but the profile has {self.profile.axes!r}; give the same")
        if self.profile and not self.force:
            self.profile.check(self.host.name, self.host.layer)

    def rotary(self) -> tuple[float, int]:
        """Return base and head width of the LLM's rotary positions; raise `ValueError` where one is not given."""
        base, width = self.rope_base, self.head_dim
        if base is None or width is None:
            missing = [name for name in FITS["rope_kernel"] if getattr(self, name) is None]
            raise ValueError(f"debias: fit='rope_kernel' needs {missing}")
        return base, width

    def published(self) -> Preset:
        """Return the preset that was asked for, or published for the host; raise `ValueError` where there is none."""
        found = PRESETS[self.preset] if self.preset else published(self.host.name)
        if found is None:
            raise ValueError(
                f"debias: no published trend of {self.host.name!r}; give sigma, a preset of {', '.join(PRESETS)}, "
                "a profile with fit='offline', or fit='per_sample'"
            )
        return found

    def check_model(self, model: Mapping[str, Any]) -> None:
        """Refuse a profile of another model, unless `force`, and rotary positions of wider heads.

        Args:
            model: facts under the keys of the profile's `model`: model_type, hidden_size, layers, name_or_path; and
                head_dim, a list where layers differ.
        """
        if self.profile and not self.force:
            self.profile.check(self.host.name, self.host.layer, model)
        if self.head_dim is not None:
            widths = model["head_dim"]
            widest = max(widths) if isinstance(widths, list) else widths
            if self.head_dim > widest:
                raise ValueError(f"debias: head_dim must be at most {widest}, that of this model, got {self.head_dim}")

    @property
    def label(self) -> str:
        return f"{self.name}({self.host.label})"

    @property
    def source(self) -> str | None:
        if self.profile is not None:
            m = self.profile.model
            doubt = "; the slope may be 0" if self.profile.doubts else ""
            name = m.get("name_or_path") or m.get("model_type")
            return f"profile of {name}: sigma {self.profile.slopes} ({self.profile.axes}){doubt}"
        preset = PRESETS.get(self.preset) if self.preset else published(self.host.name)
        stated = f"sigma {self.sigma:+.3f}, given" if self.sigma is not None else None
        if self.fit in ("preset", "subtract") and preset is not None and stated is None:
            return f"preset: {preset.origin}"
        return stated if self.fit in ("preset", "subtract") else self.fit

    @property
    def numbering(self) -> str:
        return self.host.numbering

    @property
    def padded(self) -> float:
        return self.host.padded

    @property
    def stages(self) -> tuple[Selector, ...]:
        first, *rest = self.host.stages
        return (self if first is self.host else replace(self, host=cast(ScoreSelector, first)), *rest)

    @property
    def needs(self) -> frozenset[Signal]:
        return self.host.needs

    @property
    def is_identity(self) -> bool:
        return self.host.is_identity

    def budget(self, total: int) -> int:
        return self.host.budget(total)

    def take(self, tokens: VisualTokens, k: int, scores: Tensor) -> Selection:
        return self.host.take(tokens, k, scores)

    def score(self, tokens: VisualTokens) -> Tensor:
        scores = self.host.score(tokens).float()
        trend = self.log_trend(tokens, scores).exp()
        if self.fit == "subtract":
            return scores - scores.mean() * trend / trend.mean()
        return scores / trend

    def log_trend(self, tokens: VisualTokens, scores: Tensor) -> Tensor:
        """Return fp32 [n]: the logarithm of the trend in `scores` [n], up to a constant."""
        if self.fit == "rope_kernel":
            distance = tokens.total - 1 - tokens.ordinal + self.rope_gap
            return rope_trend(distance, *self.rotary()).log()
        known = self.known(tokens)
        if self.fit != "per_sample":
            return known
        if self.axes == "thw":
            coords = grid_place(tokens)
            own = coords @ fit_axes(scores, coords)
        else:
            x = raster_place(tokens)
            own = x * fit_robust(scores, x)
        return (1 - self.shrink) * own + self.shrink * known

    def known(self, tokens: VisualTokens) -> Tensor:
        """Return fp32 [n]: the logarithm of the trend that was given; 0 where none was."""
        if self.profile is not None:
            return self.profile.log(tokens)
        x = raster_place(tokens)
        if self.sigma is not None or (self.preset is None and self.fit == "per_sample"):
            return x * (self.sigma or 0.0)
        return self.published().log(x)

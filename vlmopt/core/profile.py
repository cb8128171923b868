"""What was measured on one model: facts about that model, comparison with another one, and the dict form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, ClassVar, TypeVar

from .data import check_depth, shown
from .settings import Configured, setting, validate

FORMAT = 1
Kind = TypeVar("Kind", bound="MeasuredProfile")


@dataclass(frozen=True, kw_only=True)
class MeasuredProfile(Configured):
    """Base of everything that is measured on one model and used on it alone.

    Raises:
        TypeError, ValueError: a value of the wrong type or out of range; facts that are missing.
    """

    label: ClassVar[str] = "profile"
    facts: ClassVar[tuple[str, ...]] = ()  # whole numbers that `model` must hold

    model: Mapping[str, Any] = field(hash=False)  # model_type, hidden_size, layers, num_heads, ..., name_or_path
    samples: int = setting(MISSING, "Number of samples averaged.", "int", min=1)

    def __post_init__(self) -> None:
        validate(self, self.label)
        if not isinstance(self.model, Mapping):
            raise TypeError(f"{self.label}: model must be a dict of facts about the model, got {self.model!r}")
        object.__setattr__(self, "model", dict(self.model))
        missing = [name for name in self.facts if not isinstance(self.model.get(name), int)]
        if missing:
            raise ValueError(f"{self.label}: model must hold {', '.join(missing)} as whole numbers, got {self.model!r}")

    @property
    def source(self) -> str:
        """Say where the numbers come from."""
        name = self.model.get("name_or_path") or self.model.get("model_type") or "a model without a name"
        return f"{self.label} of {name}, {self.samples} samples"

    def refuse_others(self, *pairs: tuple[str, Any, Any], model: Mapping[str, Any] | None, way_out: str) -> None:
        """Raise `ValueError` if the profile is used elsewhere; `name_or_path` may differ, since copies have others.

        Args:
            pairs: further (what, the profile's value, the value here).
            model: facts about the model of the use; None where it is not known yet.
            way_out: how the message ends.

        Raises:
            ValueError: naming everything that differs.
        """
        known = [] if model is None else [(k, v, model.get(k)) for k, v in self.model.items() if k != "name_or_path"]
        differ = [
            f"{what} is {here!r}, the profile's is {own!r}" for what, own, here in (*pairs, *known) if own != here
        ]
        if differ:
            raise ValueError(f"this {self.label} was measured elsewhere: {'; '.join(differ)}. {way_out}")

    def to_dict(self) -> dict[str, Any]:
        """Make the JSON-ready, complete form."""
        return {"format": FORMAT, **{f.name: plain(getattr(self, f.name)) for f in fields(self)}}

    @classmethod
    def from_dict(cls: type[Kind], data: Mapping[str, Any]) -> Kind:
        """Build a profile from what `to_dict` made.

        Raises:
            TypeError, ValueError: no dict, another format, unknown or missing keys, values out of range.
        """
        if not isinstance(data, Mapping):
            raise TypeError(f"a {cls.label} must be a dict, got {shown(data)} of type {type(data).__name__}")
        check_depth(data)
        if data.get("format") != FORMAT:
            raise ValueError(f"a {cls.label} must have 'format': {FORMAT}, got {shown(data.get('format'))}")
        names = [f.name for f in fields(cls)]
        needed = [f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING]
        unknown = sorted(str(key) for key in data if key != "format" and key not in names)
        missing = [name for name in needed if name not in data]
        if unknown or missing:
            raise ValueError(f"{cls.label}: unknown keys {unknown}, missing keys {missing}; keys: {', '.join(names)}")
        return cls(**{key: value for key, value in data.items() if key != "format"})


def plain(value: Any) -> Any:
    """Write tuples as lists and mappings as dicts, all the way down."""
    if isinstance(value, Mapping):
        return {key: plain(entry) for key, entry in value.items()}
    return [plain(entry) for entry in value] if isinstance(value, (tuple, list)) else value

"""Ready-made policies; `presets.json` says what each is for. No paper evaluates the combinations."""

from __future__ import annotations

from .. import catalogue
from .policy import Policy


def presets() -> dict[str, Policy]:
    """Make every ready-made policy, by name; a number in a name is the percentage of visual tokens that stays.

    `sinks`, `describe` and `truer-25` redistribute visual sinks: they need a model whose sink dimensions are published,
    or a profile (`Profile.apply`).
    """
    return {name: Policy.from_dict(preset.policy) for name, preset in catalogue.presets().items()}

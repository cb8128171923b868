"""How much is tried: little by default, `--hypothesis-profile=many` for `make fuzz`; the same each time."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, Phase, settings

SHARD = 500  # examples of one test, so that `make fuzz` keeps every core busy

settings.register_profile(
    "few",
    max_examples=20,
    deadline=None,
    database=None,
    phases=(Phase.explicit, Phase.generate, Phase.shrink),
    suppress_health_check=list(HealthCheck),
)
settings.register_profile("many", settings.get_profile("few"), max_examples=10_000)
settings.load_profile("few")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that asks for a `shard` runs once for every `SHARD` examples of the profile; it is also its seed."""
    if "shard" in metafunc.fixturenames:
        metafunc.parametrize("shard", range(-(-settings.default.max_examples // SHARD)))

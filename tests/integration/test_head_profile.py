"""What was measured of every head: its limits, its dict form, and the share of a gain that it stands for."""

from __future__ import annotations

import json

import pytest
import torch

from tests.support.row_views import FACTS, head_profile
from vlmopt.attention_fix import HeadProfile

SMALL = {**FACTS, "layers": 1, "num_heads": 11}


def of(masses, **other):
    tables = {"visual_mass": [masses], "nonsink_mass": [masses], "divergence": [masses], **other}
    return HeadProfile(model=SMALL, samples=1, **tables)


def test_gain_is_linear_between_the_median_and_the_ninetieth_percentile():
    masses = [step / 10 for step in range(11)]  # median 0.5, 90th percentile 0.9
    want = [0, 0, 0, 0, 0, 0, 0.25, 0.5, 0.75, 1, 1]
    assert torch.allclose(of(masses).gain_map()[0], torch.tensor(want, dtype=torch.float32))
    assert torch.allclose(of(masses[::-1]).gain_map()[0].flip(0), torch.tensor(want, dtype=torch.float32))


def test_gain_compares_heads_of_all_layers():
    profile = HeadProfile(
        model={**FACTS, "layers": 2, "num_heads": 2},
        samples=1,
        **{name: [[0.1, 0.2], [0.7, 0.9]] for name in ("visual_mass", "nonsink_mass", "divergence")},
    )
    gain = profile.gain_map()
    assert gain.dtype == torch.float32
    assert gain[0].eq(0).all()
    assert gain[1].gt(0).all()


def test_gain_where_most_heads_are_alike():
    assert of([0.0] * 11).gain_map().eq(0).all()
    assert of([0.1] * 10 + [0.8]).gain_map().tolist() == [[0.0] * 10 + [1.0]]


def test_gain_by_what():
    falling = [step / 10 for step in range(10, -1, -1)]
    profile = of([step / 10 for step in range(11)], divergence=[[5 * mass for mass in falling]])
    assert torch.allclose(profile.gain_map("divergence"), profile.gain_map("visual_mass").flip(1))
    assert torch.equal(profile.gain_map("nonsink_mass"), profile.gain_map())
    with pytest.raises(ValueError, match="criterion='mass' must be one of visual_mass"):
        profile.gain_map("mass")


def test_the_dict_form_is_complete():
    profile = head_profile()
    again = HeadProfile.from_dict(json.loads(json.dumps(profile.to_dict())))
    assert again == profile
    assert hash(again) == hash(profile)
    profile.check({**FACTS, "name_or_path": "elsewhere"})
    with pytest.raises(ValueError, match="num_heads is 8, the profile's is 4"):
        profile.check({**FACTS, "num_heads": 8})


@pytest.mark.parametrize(
    ("table", "error", "match"),
    [
        ([[0.1] * 10], ValueError, r"1 layers of 11 heads, got 1 of \[10\]"),
        ([[0.1] * 11] * 2, ValueError, "got 2"),
        ([[0.1] * 10 + [1.1]], ValueError, "<= 1.0, got 1.1"),
        ([[0.1] * 10 + [-0.1]], ValueError, ">= 0"),
        ([[0.1] * 10 + [float("nan")]], ValueError, "nan"),
        ([["much"] * 11], TypeError, r"by \[layer\]\[head\]"),
        (3, TypeError, r"by \[layer\]\[head\]"),
    ],
)
def test_tables_that_cannot_be(table, error, match):
    with pytest.raises(error, match=match):
        of([0.1] * 11, visual_mass=table)
    of([0.1] * 11, divergence=[[7.0] * 11])
    with pytest.raises(ValueError, match="inf"):
        of([0.1] * 11, divergence=[[float("inf")] * 11])

"""Sinks of the residual stream: planted ones are found, and dimensions come from where they may."""

from __future__ import annotations

import pytest
import torch

from tests.support.row_views import FACTS
from vlmopt.attention_fix import SinkProfile, VisualSink
from vlmopt.attention_fix.sink_scores import PUBLISHED, auto_tau, published, published_dims, sink_mask, sink_scores


def stream(dtype=torch.float32, hidden=64, tokens=9, seed=0):
    return torch.randn(2, tokens, hidden, generator=torch.Generator().manual_seed(seed)).to(dtype)


def planted(x, dim=5, share=0.9, places=((0, 3), (1, 7)), sign=1.0):
    """The same with one dimension of some tokens so large that phi is `share` of its bound."""
    hidden = x.shape[-1]
    target = share * hidden**0.5
    for sample, place in places:
        rest = x[sample, place].float().square().sum() - x[sample, place, dim].float() ** 2
        x[sample, place, dim] = sign * (target**2 * rest / (hidden - target**2)).sqrt()
    return x


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("scale", [1.0, 1e-2, 1e3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_planted_sinks_are_found(sign, scale, dtype):
    x = (planted(stream(), sign=sign) * scale).to(dtype)
    phi = sink_scores(x, (5, 11))
    assert phi.dtype == torch.float32
    assert phi[0, 3].item() == pytest.approx(0.9 * 8, rel=1e-2)
    assert sink_mask(phi, 6.0).nonzero().tolist() == [[0, 3], [1, 7]]
    valid = torch.ones(2, 9, dtype=torch.bool)
    valid[1, 7] = False
    assert sink_mask(phi, 6.0, valid).nonzero().tolist() == [[0, 3]]
    tau = phi[0, 3].item()
    assert sink_mask(phi, tau)[0, 3]
    assert not sink_mask(phi, tau * (1 + 1e-5))[0, 3]


def test_scores_by_hand():
    x = torch.tensor([[[3.0, -4.0, 0.0, 0.0]]])  # rms 2.5
    assert sink_scores(x, (0,), eps=0.0).item() == pytest.approx(1.2)
    assert sink_scores(x, (0, 1), eps=0.0).item() == pytest.approx(1.6)
    assert sink_scores(torch.zeros(1, 1, 4), (0,)).item() == 0
    alone = torch.zeros(1, 1, 64)
    alone[..., 5] = 1000.0
    assert sink_scores(alone.half(), (5,)).item() == pytest.approx(8.0)  # the bound, and no overflow of 1000 squared
    for dims in ((), (4,), (-1,)):
        with pytest.raises(ValueError, match=r"must be in 0\.\.3"):
            sink_scores(x, dims)


def test_marks_and_the_wrong_dimension():
    assert auto_tau(4096) == 20.0
    x = planted(stream())
    assert VisualSink(dims=(5,)).mark(x)["sink"].nonzero().tolist() == [[0, 3], [1, 7]]
    assert VisualSink(dims=(5,), tau=7.5).mark(x)["sink"].sum() == 0
    assert VisualSink(dims=(6,), tau=4.0).mark(x)["sink"].sum() == 0
    with pytest.raises(ValueError, match="no sink dimensions"):
        VisualSink().mark(x)


def sink_profile(**changes):
    given = {"model": FACTS, "samples": 8, "dims": [5, 7], "tau": 4.0, "band": [1, 5], "first_layer": 2}
    return SinkProfile(**{**given, **changes})


def test_measured_dimensions():
    correction = VisualSink(profile=sink_profile(stats={"per_image": [1, 2]}))
    assert correction.mark(planted(stream()))["sink"].nonzero().tolist() == [[0, 3], [1, 7]]
    assert "somewhere/tiny" in correction.source
    correction.check_model({**FACTS, "name_or_path": "a copy", "num_kv_heads": 2})
    again = VisualSink(profile=correction.profile.to_dict())
    assert again == correction
    assert again.profile.stats == {"per_image": [1, 2]}
    assert hash(again) == hash(correction)
    with pytest.raises(ValueError, match="hidden_size is 64, the profile's is 32"):
        correction.check_model({**FACTS, "hidden_size": 64})
    for extra in ({"dims": (1,)}, {"tau": 3.0}):
        with pytest.raises(ValueError, match="give one or the other"):
            VisualSink(profile=sink_profile(), **extra)
    with pytest.raises(TypeError, match="profile"):
        VisualSink(profile=3)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"dims": []}, "dims"),
        ({"dims": [5, 5]}, "distinct"),
        ({"dims": [32]}, r"0\.\.31"),
        ({"tau": 6.0}, "never reached"),
        ({"band": [1]}, "band"),
        ({"band": [2, 2]}, "band"),
        ({"band": [1, 7]}, "band"),
        ({"first_layer": 6}, "first_layer"),
        ({"model": {"model_type": "tiny"}}, "hidden_size, layers"),
        ({"samples": 0}, "samples"),
    ],
)
def test_profiles_of_what_cannot_be(changes, match):
    with pytest.raises(ValueError, match=match):
        sink_profile(**changes)


def test_profiles_from_other_dicts():
    data = sink_profile().to_dict()
    for wrong, match in (({"format": 2}, "format"), ({"extra": 1}, r"unknown keys \['extra'\]")):
        with pytest.raises(ValueError, match=match):
            SinkProfile.from_dict({**data, **wrong})
    del data["tau"]
    with pytest.raises(ValueError, match=r"missing keys \['tau'\]"):
        SinkProfile.from_dict(data)
    with pytest.raises(TypeError, match="must be a dict"):
        SinkProfile.from_dict([data])


LLAVA = {"model_type": "llava", "hidden_size": 4096, "layers": 32, "num_heads": 32, "num_kv_heads": 32}
QWEN = {"model_type": "qwen2_5_vl", "hidden_size": 2048, "layers": 36, "num_heads": 16, "num_kv_heads": 2}


def test_published_dimensions():
    assert published_dims(LLAVA) == (1415, 2533)
    assert published_dims({**LLAVA, "num_kv_heads": 8}) is None  # another language model of the same size
    assert published_dims(QWEN) is None  # unverified
    assert published(QWEN).dims == (318, 1874, 1819)
    assert VisualSink().for_model(LLAVA) == VisualSink(dims=(1415, 2533))
    for correction, model in ((VisualSink(dims=(3,)), LLAVA), (VisualSink(profile=sink_profile()), FACTS)):
        assert correction.for_model(model) is correction
    assert len({row.name for row in PUBLISHED}) == len(PUBLISHED)
    for row in PUBLISHED:
        assert row.status in "PCT"
        assert all(0 <= c < row.model["hidden_size"] for dims in (row.dims, *row.others) for c in dims)
        for kind in row.model["model_type"]:
            assert published({**row.model, "model_type": kind}) is row


def test_models_without_known_dimensions_are_refused():
    VisualSink().check_model(LLAVA)
    VisualSink(dims=(3,)).check_model(QWEN)
    VisualSink(recycle=0.0).check_model(QWEN)
    with pytest.raises(ValueError, match=r"unverified for Qwen2.5-VL-3B: \(318, 1874, 1819\) or \(1874, 1819\)"):
        VisualSink().check_model(QWEN)
    with pytest.raises(ValueError, match="no sink dimensions are published for 'somewhere/tiny'"):
        VisualSink().check_model(FACTS)
    with pytest.raises(ValueError, match=r"0\.\.2047"):
        VisualSink(dims=(2048,)).check_model(QWEN)
    for correction in (VisualSink(dims=(3,), tau=64.0), VisualSink(tau=64.0)):
        with pytest.raises(ValueError, match=r"never reached.*about 20\.0"):
            correction.check_model(LLAVA)

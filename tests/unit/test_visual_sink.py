"""VAR: when attention moves, where it goes, and what is said about it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.support.redistribution import redistribute
from tests.support.row_views import close, edited, seen
from tests.unit.test_attention_rows import causal, oracle
from vlmopt.attention_fix import Residual, VisualSink, correct_rows

VAR = VisualSink(dims=(1,), min_nonsink_tokens=1)
ROW = [0.40, 0.10, 0.20, 0.20, 0.10]  # BOS, text, visual sink, two visual tokens
MOVED = [0.16, 0.10, 0.08, 0.44, 0.22]


def var(**settings):
    return replace(VAR, **settings)


def one_image(**kwargs):
    return seen(5, **{"image": (2, 3, 4), "sink": (0, 2), **kwargs})


def by_hand(row, image, sink, recycle=0.6, ratio=0.5, mass=0.2):
    """One row, in plain numbers."""
    on_sinks = sum(a for a, s in zip(row, sink, strict=True) if s)
    nonsink = sum(a for a, i, s in zip(row, image, sink, strict=True) if i and not s)
    visual = sum(a for a, i in zip(row, image, strict=True) if i)
    visual_sinks = any(i and s for i, s in zip(image, sink, strict=True))
    if not visual_sinks or visual < mass or nonsink <= 0 or nonsink / visual < ratio:
        return list(row), False
    factor = 1 + recycle * on_sinks / nonsink
    moved = [a * (1 - recycle) if s else a * factor if i else a for a, i, s in zip(row, image, sink, strict=True)]
    return moved, True


class Scene:
    """Random attention of 4 rows behind 2 samples with images at different places, BOS and some of them sinks."""

    def __init__(self, seed=0, heads=4, kv_heads=2, width=40, rows=4, dtype=torch.float64, batch=2):
        generator = torch.Generator().manual_seed(seed)

        def draw(count, length):
            return torch.randn(batch, count, length, 8, generator=generator, dtype=torch.float64).to(dtype)

        self.query, self.key, self.value = draw(heads, rows) * 4, draw(kv_heads, width), draw(kv_heads, width)
        place, start = torch.arange(width), torch.tensor([3, 9, 5, 12][:batch])[:, None]
        image = (place >= start) & (place < start + 20)
        sink = (place == 0) | (place == start + 2) | (place == start + 11) | (place == start + 24)
        self.allowed = causal(rows, width, width - rows)[None, None].expand(batch, 1, -1, -1)
        self.view = seen(width, batch=batch, rows=rows, image=image, sink=sink, allowed=self.allowed)
        self.image, self.sink = image, sink

    def run(self, correction, **kwargs):
        return correct_rows(self.query, self.key, self.value, None, 0.3, [(correction, self.view)], **kwargs)

    def weights(self):
        return oracle(self.query, self.key, self.allowed, 0.3)

    def spread(self, weights):
        repeat = self.query.shape[1] // self.key.shape[1]
        return torch.einsum("bhrk,bhkd->brhd", weights, self.value.double().repeat_interleave(repeat, 1))


def test_worked_example():
    assert close(edited(VAR, ROW, one_image()), MOVED)
    assert close(edited(var(min_nonsink_ratio=0.7), ROW, one_image()), ROW, 0)
    assert close(edited(var(recycle=0.25), ROW, one_image()), [0.30, 0.10, 0.15, 0.30, 0.15])
    got, stats = redistribute(
        torch.tensor(ROW, dtype=torch.float64), *(one_image().image[0], one_image().marks["sink"][0])
    )
    assert close(got.tolist(), MOVED)
    assert close([float(stats["visual_mass"]), float(stats["moved_mass"])], [0.5, 0.36])
    assert by_hand(ROW, one_image().image[0], one_image().marks["sink"][0])[1]
    assert close(by_hand(ROW, one_image().image[0], one_image().marks["sink"][0])[0], MOVED)


@pytest.mark.parametrize(
    ("row", "settings", "is_open"),
    [
        ([0.5, 0.3, 0.05, 0.10, 0.05], {}, True),  # m_I = 0.2 exactly
        ([0.5, 0.3001, 0.05, 0.0999, 0.05], {}, False),
        ([0.4, 0.1, 0.25, 0.125, 0.125], {}, True),  # r = 0.5 exactly
        ([0.4, 0.1, 0.2501, 0.1249, 0.125], {}, False),
        ([0.4, 0.1, 0.25, 0.125, 0.125], {"min_nonsink_ratio": 0.51}, False),
        ([0.0, 0.0, 1.0, 0.0, 0.0], {"min_nonsink_ratio": 0.0, "min_visual_mass": 0.0}, False),
        ([1.0, 0.0, 0.0, 0.0, 0.0], {"min_nonsink_ratio": 0.0, "min_visual_mass": 0.0}, False),
        ([0.4, 0.1, 0.25, 1e-320, 0.0], {"min_nonsink_ratio": 0.0}, False),  # 1 / m_VN would overflow
    ],
)
def test_gate(row, settings, is_open):
    values = torch.tensor(row, dtype=torch.float64)[None, None, None]
    after, changed = var(**settings).edit(values, one_image())
    assert changed.item() is is_open
    if is_open:
        assert after.sum().item() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("mass", [0.2, 0.3, 0.7])
def test_gate_is_open_at_its_limit_in_single_precision(mass):
    values = torch.tensor([1 - mass, 0, 0, mass, 0])[None, None, None]
    assert var(min_visual_mass=mass).edit(values, one_image())[1].item()
    assert not var(min_visual_mass=mass + 1e-4).edit(values, one_image())[1].item()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("recycle", [0.1, 0.6, 1.0])
def test_rows_sum_to_one_and_only_two_kinds_of_keys_move(recycle, dtype):
    scene = Scene()
    before = scene.weights().to(dtype)
    after, changed = var(recycle=recycle).edit(before, scene.view)
    assert 0 < changed.sum() < changed.numel()
    after, before = after[changed], before[changed]
    sink = scene.sink[:, None, None].expand_as(scene.weights())[changed]
    nonsink = (scene.image & ~scene.sink)[:, None, None].expand_as(scene.weights())[changed]
    assert (after.sum(-1) - 1).abs().max() < (1e-6 if dtype == torch.float32 else 1e-12)
    assert (after >= 0).all()
    assert torch.allclose(after[sink], (before * (1 - recycle))[sink], rtol=1e-6, atol=0)
    assert torch.equal(after[~sink & ~nonsink], before[~sink & ~nonsink])
    factor = 1 + recycle * (before * sink).sum(-1) / (before * nonsink).sum(-1)
    assert torch.allclose(
        after[nonsink], (before * factor[:, None])[nonsink], rtol=1e-6 if dtype == torch.float32 else 1e-12
    )
    if recycle == 1:
        assert after[sink].eq(0).all()


def test_every_row_and_head_by_hand():
    for seed in range(5):
        scene = Scene(seed)
        before = scene.weights()
        after, changed = VAR.edit(before, scene.view)
        readable, stats = redistribute(before, scene.image[:, None, None], scene.sink[:, None, None])
        assert torch.equal(stats["open"], changed)
        for sample, head, row in torch.cartesian_prod(torch.arange(2), torch.arange(4), torch.arange(4)).tolist():
            want, is_open = by_hand(before[sample, head, row].tolist(), scene.image[sample], scene.sink[sample])
            assert changed[sample, head, row].item() == is_open
            assert close(readable[sample, head, row].tolist(), want)
            if is_open:
                assert close(after[sample, head, row].tolist(), want)


def test_a_row_does_not_know_what_comes_later():
    """Text between two images: a sink in the second, or its many tokens, changes nothing for it."""
    width, first, second = 12, (1, 2, 3), (6, 7, 8, 9)
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(1, 2, 1, width, generator=generator, dtype=torch.float64)
    allowed = (torch.arange(width) <= 5)[None, None, None]
    values = (values * allowed) / (values * allowed).sum(-1, keepdim=True)
    for sinks, correction in (((0, 7), VAR), ((0, 1), var(min_nonsink_tokens=3))):
        view = seen(width, image=first + second, sink=sinks, allowed=allowed)
        assert not correction.edit(values, view)[1].any()
    assert VAR.edit(values, seen(width, image=first + second, sink=(0, 1, 7), allowed=allowed))[1].any()


def test_hardly_any_token_left_to_give_to():
    assert VisualSink(dims=(1,)).min_nonsink_tokens == 8
    values = torch.tensor(ROW)[None, None, None]
    assert var(min_nonsink_tokens=2).edit(values, one_image())[1].item()
    assert not var(min_nonsink_tokens=3).edit(values, one_image())[1].item()
    assert not var(recycle=1.0).edit(values, one_image(image=(2,)))[1].any()  # all visual tokens are sinks


def test_nothing_to_do():
    values = torch.tensor(ROW)[None, None, None]
    no_visual_sink, no_sink, unmarked = one_image(sink=(0, 1)), one_image(sink=()), replace(one_image(), marks={})
    text = seen(5, sink=(0,))
    for correction, view in [(VAR, v) for v in (no_visual_sink, no_sink, unmarked, text)] + [
        (var(recycle=0.0), one_image())
    ]:
        assert not correction.edit(values, view)[1].any()
    assert var(recycle=0.0).is_identity
    assert not var(recycle=0.0).needs
    assert not VAR.is_identity
    assert VAR.needs == {Residual()}
    assert VAR.measure(values, unmarked) == {}


def two_images(sinks, span=(-1, 0, 0, 0, -1, 4, 4, 4)):
    """Keys: BOS, three of an image, text, three of another, whose numbers need not be dense."""
    view = seen(8, image=(1, 2, 3, 5, 6, 7), sink=sinks)
    return replace(view, span=torch.tensor([span]))


def test_budgets_by_image():
    row = [0.3, 0.1, 0.1, 0.1, 0.1, 0.1, 0.15, 0.05]
    view, correction = two_images((0, 1)), var(scope="per_image", recycle=0.5)
    # 0.05 of the first image's sink to its own 0.2; 0.15 of BOS to 0.5 by weight: 0.3 of each weight
    assert close(edited(correction, row, view), [0.15, 0.05, 0.155, 0.155, 0.1, 0.13, 0.195, 0.065])
    both = edited(correction, row, two_images((0, 1, 6)))
    pool, first, second = 0.15 / 0.35, 0.05 / 0.2, 0.075 / 0.15  # BOS to all, either sink to its own
    weights = [0.1 * (1 + pool + first)] * 2 + [0.1] + [0.1 * (1 + pool + second), 0.075, 0.05 * (1 + pool + second)]
    assert close(both, [0.15, 0.05, *weights])
    assert sum(both) == pytest.approx(1, abs=1e-12)


def test_an_image_of_sinks_alone_gives_to_the_others():
    row = [0.3, 0.05, 0.05, 0.05, 0.1, 0.2, 0.15, 0.1]
    got = edited(var(scope="per_image", recycle=0.5), row, two_images((1, 2, 3)))
    assert close(got, [0.3, 0.025, 0.025, 0.025, 0.1, *(a * (1 + 0.075 / 0.45) for a in (0.2, 0.15, 0.1))])
    assert close(got, edited(var(recycle=0.5), row, two_images((1, 2, 3))))


def test_scopes_agree_on_one_image():
    scene = Scene(5)
    scene.view = replace(scene.view, span=scene.image.long() * 1000 - 1)  # 999 may exceed the number of stored keys
    assert (scene.run(var(scope="per_image"))[0] - scene.run(VAR)[0]).abs().max() < 1e-12


@pytest.mark.parametrize("scope", ["all", "per_image"])
def test_measurements_match_a_recount(scope):
    scene = Scene(6)
    scene.view = replace(scene.view, rows=torch.tensor([[True, False, True, True], [False, False, True, True]]))
    weights = scene.weights()
    measured = {name: float(value) for name, value in var(scope=scope).measure(weights, scene.view).items()}
    places = [(b, h, r) for b, r in scene.view.rows.nonzero().tolist() for h in range(4)]
    is_open = [by_hand(weights[place].tolist(), scene.image[place[0]], scene.sink[place[0]])[1] for place in places]
    on_image = [(weights[place] * scene.image[place[0]]).sum() for place in places]
    on_sinks = [(weights[place] * scene.sink[place[0]]).sum() for place in places]
    want = {
        "sinks": scene.sink.sum() / 2,
        "visual_sinks": (scene.sink & scene.image).sum() / 2,
        "gates_open": sum(is_open) / len(places),
        "visual_mass": sum(on_image) / len(places),
        "moved_mass": sum(0.6 * mass for mass, o in zip(on_sinks, is_open, strict=True) if o) / len(places),
    }
    assert measured.keys() == want.keys()
    assert close([measured[name] for name in want], [float(value) for value in want.values()])


def test_layers_leave_the_first_two_and_the_last_alone():
    assert VisualSink().at(8) == {2, 3, 4, 5, 6}

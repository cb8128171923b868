"""Padding is found by geometry and in the pixels, and its tokens are never kept."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import interpolate, pad

from tests.support.padding import coverage, square_padding
from vlmopt.pruning import AttentionRows, Debias, FastV, LookAheadRows, Pixels, PyramidDrop, VisualTokens
from vlmopt.pruning.padding import valid_cells

MEAN, STD = torch.tensor([0.4815, 0.4578, 0.4082]), torch.tensor([0.2686, 0.2613, 0.2758])
SIZES = [(640, 480), (480, 640), (1024, 683), (683, 1024), (500, 333), (336, 336), (1000, 90)]
ROWS = AttentionRows(1)


def drawn(width: int, height: int, seed: int = 0) -> torch.Tensor:
    """A random image [3, height, width] in 0..1 with grain, without plain regions."""
    generator = torch.Generator().manual_seed(seed)
    rough = torch.rand(1, 3, 9, 9, generator=generator)
    smooth = interpolate(rough, (height, width), mode="bilinear")[0]
    return (smooth * 0.7 + 0.3 * torch.rand(3, height, width, generator=generator)).clamp(0, 1)


def on_square(image: torch.Tensor, colour: torch.Tensor, side: int) -> torch.Tensor:
    """As LLaVA does it: the image in the middle of a square of whole grey levels, resized to `side`."""
    _, height, width = image.shape
    longest = max(height, width)
    square = (colour * 255).int().float()[:, None, None].div(255).expand(3, longest, longest).clone()
    top, left = (longest - height) // 2, (longest - width) // 2
    square[:, top : top + height, left : left + width] = (image * 255).round() / 255
    return interpolate(square[None], (side, side), mode="bicubic", antialias=True)[0].clamp(0, 1)


def cells(image: torch.Tensor, patch: int = 14) -> torch.Tensor:
    """Normalised pixels [n, 3, patch * patch] of an image [3, H, W] in 0..1."""
    normal = (image - MEAN[:, None, None]) / STD[:, None, None]
    return normal.unfold(1, patch, patch).unfold(2, patch, patch).permute(1, 2, 0, 3, 4).flatten(0, 1).flatten(2)


def visual(pixels: torch.Tensor, grids, scores: torch.Tensor | None = None, newlines: bool = False) -> VisualTokens:
    """Tokens of whole grids [(t, h, w)]; `newlines` puts a structural token after every row."""
    coords, item = [], []
    for i, grid in enumerate(grids):
        own = torch.cartesian_prod(*map(torch.arange, grid)).reshape(-1, grid[2], 3)
        own = pad(own, (0, 0, 0, 1), value=-1) if newlines else own
        coords.append(own.reshape(-1, 3))
        item.append(torch.full((len(coords[-1]),), i))
    places = torch.cat(coords)
    seen = torch.full((len(places), *pixels.shape[1:]), math.nan)
    seen[(places >= 0).all(1)] = pixels
    n = len(places)
    rows = torch.rand(n, generator=torch.Generator().manual_seed(1)) if scores is None else scores
    signals = {Pixels(): seen, ROWS: rows.expand(2, 1, n)}
    lengths = tuple(len(own) for own in coords)
    return VisualTokens(n, torch.arange(n), torch.cat(item), places, tuple(grids), signals, 0, lengths)


# --- geometry


@pytest.mark.parametrize(
    ("size", "threshold", "count"),
    [
        *[((640, 480), threshold, 144) for threshold in (0.0, 0.01, 0.3, 0.5, 0.99)],
        *[((480, 640), threshold, 144) for threshold in (0.0, 0.5, 0.99)],
        ((1024, 683), 0.5, 192), ((1024, 683), 0.01, 192), ((1024, 683), 0.99, 168),
        ((500, 333), 0.5, 192), ((500, 333), 0.01, 216), ((500, 333), 0.99, 168),
        *[((336, 336), threshold, 0) for threshold in (0.0, 0.5)],
    ],
)  # fmt: skip
def test_golden_counts(size, threshold, count):
    assert int(square_padding(*size, 24, threshold).sum()) == count


def test_golden_fractions():
    assert square_padding(640, 480, 24).all(1).nonzero()[:, 0].tolist() == [0, 1, 2, 21, 22, 23]
    rows = 1 - coverage(170, 683, 1024, 24)
    assert rows[:5].tolist() == pytest.approx([1, 1, 1, 0.984, 0], abs=6e-4)
    assert rows[19:].tolist() == pytest.approx([0.008, 1, 1, 1, 1], abs=6e-4)
    rows = 1 - coverage(83, 333, 500, 24)
    assert rows[[3, 19]].tolist() == pytest.approx([0.984, 0.032], abs=6e-4)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("threshold", [0.0, 0.01, 0.5, 0.99])
def test_transposition(size, threshold):
    assert torch.equal(square_padding(*size, 24, threshold), square_padding(*size[::-1], 24, threshold).T)


@pytest.mark.parametrize("bad", [(0, 5, 24), (5, 0, 24), (5, 5, 0), (5, 5, 24, 1.1), (5, 5, 24, -0.1)])
def test_geometry_that_is_refused(bad):
    with pytest.raises(ValueError, match="threshold"):
        square_padding(*bad)


# --- pixels


@pytest.mark.parametrize("padding", ["square", "blank"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_padding_in_real_pixels_is_that_of_geometry(size, padding):
    pixels = cells(on_square(drawn(*size), MEAN, 336))
    valid = valid_cells(visual(pixels, [(1, 24, 24)]), padding)
    assert torch.equal(~valid.view(24, 24), square_padding(*size, 24))


def test_pyramid_drop_as_released_takes_every_touched_token_for_padding():
    pixels = cells(on_square(drawn(336, 278), MEAN, 336))  # bars of two rows of cells and one pixel
    rows = {LookAheadRows(1): torch.rand(2, 1, 576, generator=torch.Generator().manual_seed(0))}
    tokens = replace(visual(pixels, [(1, 24, 24)]), signals={Pixels(): pixels, **rows})
    settings = {"keep_ratio": 1.0, "layers": (1,), "padding": "square"}
    for method, threshold in [
        (PyramidDrop(**settings), 0.5),
        (PyramidDrop(**settings, paper_compat=True), 0.01),
        (Debias(PyramidDrop(**settings, paper_compat=True)), 0.01),
    ]:
        want = (~square_padding(336, 278, 24, threshold)).flatten().nonzero()[:, 0]
        assert torch.equal(method.select(tokens).keep, want)
        assert len(want) == 24 * (20 if threshold == 0.5 else 18)


def test_an_image_without_padding_loses_nothing():
    tokens = visual(cells(drawn(168, 112)), [(1, 8, 12)])
    assert valid_cells(tokens, "keep") is None
    for padding in ("square", "blank"):
        assert valid_cells(tokens, padding).all()


def test_black_bars_are_blank_but_no_square_padding():
    pixels = cells(on_square(drawn(640, 480), torch.zeros(3), 336))
    tokens = visual(pixels, [(1, 24, 24)])
    assert valid_cells(tokens, "square").all()
    hidden = ~valid_cells(tokens, "blank").view(24, 24)
    rows = hidden.all(1).nonzero()[:, 0].tolist()
    assert torch.equal(hidden, hidden.all(1, keepdim=True).expand(24, 24))
    assert {0, 1, 22, 23} <= set(rows) <= {0, 1, 2, 21, 22, 23}  # resizing blurs the image into the next row


def test_bars_of_any_colour_in_native_pixels():
    for colour in (torch.zeros(3), torch.ones(3), torch.tensor([0.2, 0.9, 0.4])):
        image = colour[:, None, None].expand(3, 112, 112).clone()
        image[:, 28:84] = drawn(112, 56)
        valid = valid_cells(visual(cells(image), [(1, 8, 8)]), "blank").view(8, 8)
        assert valid.all(1).tolist() == [False] * 2 + [True] * 4 + [False] * 2


@pytest.mark.parametrize("padding", ["square", "blank"])
def test_plain_regions_inside_the_image_stay(padding):
    image = drawn(168, 168)
    image[:, 56:112] = MEAN[:, None, None]  # a band of four rows that touches no border row
    image[:, :56, :70] = MEAN[:, None, None]  # a corner that fills no row and no column
    assert valid_cells(visual(cells(image), [(1, 12, 12)]), padding).all()


@pytest.mark.parametrize("padding", ["square", "blank"])
def test_bars_on_all_four_sides(padding):
    image = MEAN[:, None, None].expand(3, 168, 168).clone()
    image[:, 28:140, 42:126] = drawn(84, 112)
    hidden = ~valid_cells(visual(cells(image), [(1, 12, 12)]), padding).view(12, 12)
    inside = torch.zeros(12, 12, dtype=torch.bool)
    inside[2:10, 3:9] = True
    # a column beside the image is plain all along; so is a row above it
    assert torch.equal(hidden, ~inside)


def test_images_and_frames_have_bars_of_their_own():
    wide, tall = on_square(drawn(64, 32), MEAN, 112), on_square(drawn(32, 64, 1), MEAN, 112)
    whole = drawn(70, 42, 2)
    pixels = torch.cat([cells(image) for image in (wide, tall, whole)])
    want = ~torch.cat([square_padding(64, 32, 8).flatten(), square_padding(32, 64, 8).flatten(), torch.zeros(15) > 0])
    assert torch.equal(valid_cells(visual(pixels, [(1, 8, 8), (1, 8, 8), (1, 3, 5)]), "square"), want)
    assert torch.equal(valid_cells(visual(pixels[:128], [(2, 8, 8)]), "square"), want[:128])


def test_an_image_of_padding_alone_is_no_padding():
    plain = cells(MEAN[:, None, None].expand(3, 112, 112))
    pixels = torch.cat([plain, cells(on_square(drawn(64, 32), MEAN, 112))])
    valid = valid_cells(visual(pixels, [(1, 8, 8), (1, 8, 8)]), "square")
    assert valid[:64].all()
    assert int(valid[64:].sum()) == 32


@pytest.mark.parametrize("size", [(64, 32), (32, 64)])
@pytest.mark.parametrize("padding", ["square", "blank"])
def test_row_separators_do_not_hide_the_bars(size, padding):
    pixels = cells(on_square(drawn(*size), MEAN, 112))
    tokens = visual(pixels, [(1, 8, 8)], newlines=True)
    valid = valid_cells(tokens, padding)
    assert torch.equal(~valid[~tokens.structural].view(8, 8), square_padding(*size, 8))
    assert valid[tokens.structural].all()


def test_an_image_of_padding_alone_with_row_separators():
    tokens = visual(cells(MEAN[:, None, None].expand(3, 112, 112)), [(1, 8, 8)], newlines=True)
    assert valid_cells(tokens, "square").all()
    assert len(FastV(keep_tokens=20, padding="square").select(tokens).keep) == 20


def test_tokens_without_a_grid_have_no_padding():
    tokens = visual(cells(on_square(drawn(64, 32), MEAN, 112)), [(1, 8, 8)])
    blind = VisualTokens(
        64, tokens.ordinal, tokens.item, torch.full((64, 3), -1), (None,), tokens.signals, 0, tokens.lengths
    )
    assert valid_cells(blind, "square").all()


# --- selection


@pytest.mark.parametrize("size", [(640, 480), (480, 640), (1024, 683), (336, 336)], ids=str)
@pytest.mark.parametrize("k", [1, 64, 400, 576])
def test_padding_is_never_kept_whatever_its_score(size, k):
    padded = square_padding(*size, 24).flatten()
    scores = torch.rand(576, generator=torch.Generator().manual_seed(k))
    scores[padded] = math.inf
    tokens = visual(cells(on_square(drawn(*size), MEAN, 336)), [(1, 24, 24)], scores)
    selection = FastV(keep_tokens=k, padding="square").select(tokens)
    assert not padded[selection.keep].any()
    assert len(selection.keep) == min(k, int((~padded).sum()))
    assert selection.stats["padding"] == int(padded.sum())
    assert (selection.keep.diff() > 0).all()


def test_the_budget_goes_to_images_by_their_valid_tokens():
    images = [on_square(drawn(64, 16), MEAN, 112), drawn(112, 112, 1)]
    tokens = visual(torch.cat([cells(image) for image in images]), [(1, 8, 8), (1, 8, 8)])
    keep = FastV(keep_tokens=40, padding="square").select(tokens).keep
    assert tokens.item[keep].bincount().tolist() == [8, 32]  # 16 and 64 valid ones


def test_separators_stay_last_when_padding_leaves_room():
    tokens = visual(cells(on_square(drawn(64, 32), MEAN, 112)), [(1, 8, 8)], newlines=True)
    for k in (5, 32, 36, 72):
        keep = FastV(keep_tokens=k, padding="square").select(tokens).keep
        assert len(keep) == min(k, 40)  # 32 valid patches and 8 separators
        assert int(tokens.structural[keep].sum()) == max(min(k, 40) - 32, 0)


def test_keeping_everything_drops_padding_still():
    tokens = visual(cells(on_square(drawn(64, 32), MEAN, 112)), [(1, 8, 8)])
    method = FastV(keep_ratio=1.0, padding="square")
    assert not method.is_identity
    assert method.select(tokens).keep.tolist() == list(range(16, 48))


def test_pixels_are_asked_for_only_where_padding_is_looked_for():
    assert Pixels() not in FastV(keep_ratio=0.5).captures
    for padding in ("square", "blank"):
        assert FastV(keep_ratio=0.5, padding=padding).captures == {ROWS, Pixels()}
    with pytest.raises(ValueError, match="keep, square, blank"):
        FastV(keep_ratio=0.5, padding="round")

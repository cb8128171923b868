"""Steps of decoding as pure functions: numbers by hand, and what holds for all logits."""

from __future__ import annotations

import math

import pytest
import torch

from vlmopt.decoding import (
    VCD,
    BlankContrast,
    DeCo,
    DoLa,
    LocalContrast,
    Plausibility,
    TextContrast,
    YesBias,
    contrast,
    deco,
    yes_ids,
)
from vlmopt.decoding.dola import divergence
from vlmopt.decoding.vcd import remaining
from vlmopt.runtime.second_pixels import within

V = torch.tensor([2, 1.8, 1.5, -1], dtype=torch.float64)
N = torch.tensor([2.2, 1, 1.5, -1], dtype=torch.float64)
L = torch.tensor([0.5, 1.5, 0, 0], dtype=torch.float64)
OUT = -math.inf
A = 2.0
CLOSE = {"atol": 1e-6, "rtol": 0}
GOLDEN = [  # (what, z, its softmax)
    (contrast(V, N, 0, 0.1), [2, 1.8, 1.5, OUT], [0.412327, 0.337585, 0.250089, 0]),
    (contrast(V, N, 1, 0.1), [1.8, 2.6, 1.5, OUT], [0.252120, 0.561104, 0.186775, 0]),
    (contrast(V, N, 0.5, 0.5), [1.9, 2.2, 1.5, OUT], [0.331106, 0.446947, 0.221947, 0]),
    ((1 + A) * contrast(V, L, -A / (1 + A), 0.5), [3, 4.8, 1.5, OUT], [0.137499, 0.831821, 0.030680, 0]),
    (contrast(V, L, -A / (1 + A), 0.5), [1, 1.6, 0.5, OUT], [0.291660, 0.531439, 0.176901, 0]),
]


@pytest.mark.parametrize("row", range(len(GOLDEN)))
def test_numbers_by_hand(row):
    z, logits, shares = GOLDEN[row]
    assert z.dtype == torch.float32
    assert torch.allclose(z, torch.tensor(logits), **CLOSE)
    assert torch.allclose(z.softmax(-1), torch.tensor(shares), **CLOSE)


@pytest.mark.parametrize(
    ("method", "row"),
    [
        (VCD(), 1),
        (BlankContrast(alpha=0.5, cutoff=0.5), 2),
        (TextContrast(), 1),
        (LocalContrast(paper_compat=True), 3),
        (LocalContrast(), 4),
    ],
)
def test_methods_are_the_function(method, row):
    other = L if isinstance(method, LocalContrast) else N
    found = method.step(V[None].float(), other[None].float())[0].softmax(-1)
    assert torch.allclose(found, torch.tensor(GOLDEN[row][2]), **CLOSE)


def test_without_weight_the_first_stream_stays():
    v, n = torch.randn(3, 7), torch.randn(3, 7)
    assert torch.equal(contrast(v, n, 0), v)
    methods = (VCD(alpha=0), TextContrast(alpha=0), LocalContrast(a=0), YesBias(c=0, ids=[1]), Plausibility(cutoff=0))
    assert all(method.is_identity for method in (*methods, DeCo(alpha=0)))
    assert not any(method.is_identity for method in (VCD(), LocalContrast(), DoLa(), DeCo()))


def test_what_a_contrast_depends_on():
    torch.manual_seed(0)
    v, n = torch.randn(4, 9), torch.randn(4, 9)
    z = contrast(v, n, 1.3, 0.3)
    shifted = contrast(v + 5, n - 2, 1.3, 0.3)
    assert torch.allclose(shifted.softmax(-1), z.softmax(-1), atol=1e-5)
    assert torch.equal(z == OUT, contrast(v, torch.randn(4, 9), 0.2, 0.3) == OUT)  # what stays depends on v alone
    assert (z.gather(1, v.argmax(1, keepdim=True)) > OUT).all()
    assert torch.equal(contrast(v, n, 5, 1.0) > OUT, v == v.amax(1, keepdim=True))
    up = n.clone()
    up[:, 3] += 1
    assert (contrast(v, up, 1)[:, 3] < contrast(v, n, 1)[:, 3]).all()
    assert torch.equal(contrast(v[2:3], n[2:3], 1.3, 0.3), z[2:3])  # rows are alone
    assert contrast(v.half(), n.half(), 1).dtype == torch.float32


def test_ids_that_are_excluded_stay_so():
    v, n = torch.tensor([[1.0, OUT, 0.5]]), torch.tensor([[0.0, OUT, 0.5]])
    assert contrast(v, n, 1).tolist() == [[2.0, OUT, 0.5]]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_second_stream_that_is_not_finite_is_left_out(bad):
    v, n = torch.randn(2, 4), torch.randn(2, 4)
    n[1, 2] = bad
    assert torch.equal(contrast(v, n, 1)[1], v[1])
    assert not torch.equal(contrast(v, n, 1)[0], v[0])


def test_noise_leaves_what_the_paper_says():
    left = remaining()[[0, 100, 250, 500, 700, 999]]
    assert torch.allclose(
        left, torch.tensor([0.999978, 0.996589, 0.978386, 0.744799, 0.351266, 0.081249]).double(), **CLOSE
    )
    frame, noise = torch.randn(3, 4, 4), torch.randn(3, 4, 4)
    assert torch.allclose(VCD().change(frame, lambda: noise), 0.863017 * frame + 0.505175 * noise, atol=1e-5)


def test_deco_by_hand():
    final, early = torch.tensor([[3, 2.5, 1, -2]]), torch.tensor([[[0, 4.0, 0, 5], [1, 2, 0, 0]]])
    z = deco(final, early)
    assert torch.allclose(z[0, :2], torch.tensor([3.366177, 3.232355]), **CLOSE)
    assert (z[0, 2:] == OUT).all()
    both = deco(torch.cat([final, final.flip(1)]), torch.cat([early, early.flip(2)]))
    assert torch.equal(both, torch.cat([z, z.flip(1)]))  # every row has candidates and a layer of its own
    assert (deco(final, early, top_k=1) > OUT).tolist() == [[True, False, False, False]]
    assert torch.equal(deco(final, early, alpha=0, top_p=1.0, top_k=99), final)


def test_dola_by_hand():
    final = torch.tensor([[0.7, 0.25, 0.05]]).log()
    near, far = torch.tensor([0.6, 0.3, 0.1]).log(), torch.tensor([0.1, 0.1, 0.8]).log()
    z = DoLa(cutoff=0.1).step(final, torch.stack([near, far])[None])
    assert torch.allclose(z[0, :2], torch.tensor([7.0, 2.5]).log(), atol=1e-6)
    assert z[0, 2] == OUT
    assert divergence(final, final).abs().max() < 1e-7
    disjoint = divergence(torch.tensor([0.0, OUT]), torch.tensor([OUT, 0.0]))
    assert math.isclose(float(disjoint), math.log(2), abs_tol=1e-6)


def test_controls():
    scores = torch.tensor([[0.0, 1.0, -4.0]])
    assert Plausibility().step(scores, None).tolist() == [[0.0, 1.0, OUT]]
    assert YesBias(c=0.5, ids=[0, 2]).step(scores, None).tolist() == [[0.5, 1.0, -3.5]]
    with pytest.raises(ValueError, match=r"ids=\(3,\) must lie below the 3 tokens"):
        YesBias(ids=[3]).step(scores, None)
    with pytest.raises(ValueError, match="yes_ids"):
        YesBias()
    with pytest.raises(ValueError, match=r"ids=\(3, 3\) names a token twice"):
        YesBias(ids=[3, 3])


def test_a_mask_is_a_function():
    with pytest.raises(TypeError, match=r"local_contrast: mask must be a function .* got 3 of type int"):
        LocalContrast(mask=3)


def test_ids_of_yes_are_found():
    spelt = {"yes": [4], "Yes": [9], " yes": [3, 4], " Yes": [9]}

    def tokenizer(text, add_special_tokens):
        return {"input_ids": spelt[text]}

    assert yes_ids(tokenizer) == (4, 9)
    spelt = {word: [1, 2] for word in spelt}
    with pytest.raises(ValueError, match="several tokens"):
        yes_ids(tokenizer)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_blank_pixels_are_nothing_yet_no_product_with_a_weight_is_subnormal(dtype):
    """CPUs are many times slower on subnormal numbers; models leave out tiles of nothing but 0."""
    frame = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    blank = within(frame, BlankContrast(), 0)
    assert (blank.abs().float() < 1e-4).all()
    assert (blank.float() * 1e-6 > torch.finfo(torch.float32).tiny).all()

"""Rows with corrections in them against full attention in fp64: masks, shared keys, pieces, memory, what is edited."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.support.row_views import seen
from tests.unit.test_attention_rows import causal, oracle
from vlmopt.attention_fix import RowCorrection, correct_rows

TIGHT = 1e-12
SHAPES = [
    (1, 1, 1, 1, 1, 1),
    (2, 4, 4, 3, 7, 8),
    (1, 8, 2, 5, 5, 16),
    (2, 14, 2, 2, 33, 4),
]  # B H Hkv R K D: groups of 1, 1, 4 and 7


@dataclass(frozen=True, kw_only=True)
class Tilt(RowCorrection):
    """Adds 1 to the logits of visual keys, in heads of even number."""

    name: ClassVar[str] = "tilt"
    stage: ClassVar[str] = "logits"
    is_identity = False

    def edit(self, values, view):
        heads = torch.arange(values.shape[1]) % 2 == 0
        return values + view.image[:, None, None], heads[:, None].expand(values.shape[:3])


@dataclass(frozen=True, kw_only=True)
class Halve(RowCorrection):
    """Halves the weights of visual keys, in rows of odd number; what it returns elsewhere is no number at all."""

    name: ClassVar[str] = "halve"
    is_identity = False

    def edit(self, values, view):
        odd = view.marks["odd"][:, None, : values.shape[2]].expand(values.shape[:3])
        halved = torch.where(view.image[:, None, None], values / 2, values)
        return halved.masked_fill(~odd[..., None], torch.nan), odd


def draw(shape, seed=0, dtype=torch.float64, size=2.0):
    batch, heads, kv_heads, rows, width, dim = shape
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(batch, heads, rows, dim, generator=generator, dtype=torch.float64) * size
    key = torch.randn(batch, kv_heads, width, dim, generator=generator, dtype=torch.float64) * size
    value = torch.randn(batch, kv_heads, width, dim + 1, generator=generator, dtype=torch.float64)
    return query.to(dtype), key.to(dtype), value.to(dtype), generator


def want(query, key, value, allowed, scaling, image=None, odd=None, **kwargs):
    """[B, R, H, Dv] in fp64 with `Tilt` and `Halve` in the loop, head by head."""
    repeat = query.shape[1] // key.shape[1]
    tilt = torch.zeros(query.shape[:3] + key.shape[2:3], dtype=torch.float64)
    if image is not None:
        tilt[:, ::2] += image[:, None, None]
    bias = kwargs.pop("bias", torch.zeros(()))
    weights = oracle(query, key, allowed, scaling, bias.double() + tilt, **kwargs)
    if odd is not None:
        weights = torch.where(odd[:, None, :, None] & image[:, None, None], weights / 2, weights)
    return torch.einsum("bhrk,bhkd->brhd", weights, value.double().repeat_interleave(repeat, 1))


def masks(shape, generator):
    """Every form of mask: the mask, the first row, what is allowed, and what it adds."""
    batch, heads, _, rows, width, _ = shape
    triangle = causal(rows, width, width - rows)[None, None]
    yield None, None, triangle, 0
    yield None, 0, causal(rows, width, 0)[None, None], 0
    valid = torch.rand(batch, width, generator=generator) < 0.7
    yield valid, None, triangle & valid[:, None, None], 0
    for size in ((batch, 1), (1, heads), (batch, heads)):
        allowed = torch.rand(*size, rows, width, generator=generator) < 0.6
        yield allowed, None, allowed, 0
        bias = torch.randn(*size, rows, width, generator=generator)
        yield bias.masked_fill(~allowed, torch.finfo(torch.float32).min), None, allowed, bias


@pytest.mark.parametrize("budget", [1, 2**9, 2**26])
@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_edits_between_logits_and_values(shape, softcap, budget):
    query, key, value, generator = draw(shape)
    batch, heads, _, rows, width, _ = shape
    for mask, first, allowed, bias in masks(shape, generator):
        image = torch.rand(batch, width, generator=generator) < 0.5
        odd = (torch.arange(rows) % 2 == 1).expand(batch, rows)
        view = seen(width, batch=batch, rows=rows, image=image, allowed=allowed)
        edits = [(Tilt(), view), (Halve(), replace(view, rows=odd, marks={"odd": torch.ones_like(odd)}))]
        got, edited = correct_rows(query, key, value, mask, 0.3, edits, softcap=softcap, first_row=first, budget=budget)
        expected = want(query, key, value, allowed, 0.3, image, odd, softcap=softcap, bias=torch.as_tensor(bias))
        assert got.shape == expected.shape
        assert got.dtype == torch.float64
        assert (got - expected).abs().max() < TIGHT
        even = torch.arange(heads) % 2 == 0
        assert torch.equal(edited, even[None, :, None] | odd[:, None])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_without_edits_it_is_attention(shape):
    query, key, value, generator = draw(shape, 1)
    for mask, first, allowed, bias in masks(shape, generator):
        got, edited = correct_rows(query, key, value, mask, 0.3, [], first_row=first)
        assert (got - want(query, key, value, allowed, 0.3, bias=torch.as_tensor(bias))).abs().max() < TIGHT
        assert not edited.any()


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float16, 2e-3), (torch.bfloat16, 2e-2)], ids=str
)
def test_lower_precision_rounds_the_output_only(dtype, tolerance):
    """Logits of magnitude 50 in fp16: nothing overflows, and the error is that of rounding the result once."""
    query, key, value, _ = draw((2, 4, 2, 3, 40, 16), 2, dtype, 4.0)
    logits = torch.einsum("bhrd,bhkd->bhrk", query.double(), key.double().repeat_interleave(2, 1)) * 0.25
    assert logits.abs().max() > 50
    got, _ = correct_rows(query, key, value, None, 0.25, [(Tilt(), seen(40, batch=2, rows=3, image=range(9)))])
    expected = want(query, key, value, causal(3, 40, 37), 0.25, seen(40, batch=2, image=range(9)).image)
    assert got.dtype == dtype
    assert got.isfinite().all()
    assert (got - expected).abs().max() < tolerance


def test_an_edit_stays_in_the_rows_it_may_edit():
    query, key, value, _ = draw((2, 4, 2, 6, 9, 8), 3, torch.float32)
    plain, _ = correct_rows(query, key, value, None, 0.3, [])
    may = torch.tensor([[0, 1, 0, 0, 1, 1], [0, 0, 0, 0, 0, 1]]).bool()
    got, edited = correct_rows(
        query, key, value, None, 0.3, [(Tilt(), seen(9, batch=2, rows=6, image=(1, 2), may=may))]
    )
    assert torch.equal(edited, may[:, None] & torch.tensor([True, False, True, False])[:, None])
    where = edited.transpose(1, 2)
    assert torch.equal(got[~where], plain[~where])
    assert not torch.isclose(got[where], plain[where]).all(-1).any()


def test_values_of_rows_that_are_not_edited_go_unread():
    """`Halve` returns NaN in rows that it does not mark, and a later edit must not see it."""
    query, key, value, _ = draw((1, 2, 2, 4, 9, 8), 4)
    odd = torch.tensor([[False, True, False, True]])
    view = replace(seen(9, rows=4, image=(1, 2)), marks={"odd": odd})
    got, edited = correct_rows(query, key, value, None, 0.3, [(Halve(), view), (Halve(), view)])
    assert got.isfinite().all()
    assert torch.equal(edited, odd[:, None].expand(1, 2, 4))


def test_an_edit_cannot_open_a_key():
    query, key, value, _ = draw((1, 2, 2, 3, 9, 8), 5)

    @dataclass(frozen=True, kw_only=True)
    class Flat(Tilt):
        def edit(self, values, view):
            return torch.zeros_like(values), torch.ones(values.shape[:3], dtype=torch.bool)

    allowed = causal(3, 9, 6)
    got, _ = correct_rows(query, key, value, None, 0.3, [(Flat(), seen(9, rows=3))])
    weights = allowed / allowed.sum(1, keepdim=True)
    assert (got - torch.einsum("rk,bhkd->brhd", weights.double(), value)).abs().max() < 1e-7


def test_rows_without_any_key_are_zero():
    query, key, value, _ = draw((2, 4, 2, 3, 6, 8), 6)
    allowed = torch.ones(2, 1, 3, 6, dtype=torch.bool)
    allowed[1, :, 0] = False
    got, _ = correct_rows(
        query, key, value, allowed, 0.3, [(Tilt(), seen(6, batch=2, rows=3, image=(1,), allowed=allowed))]
    )
    assert got[1, 0].eq(0).all()
    assert got[1, 1:].ne(0).all()


def test_no_rows_at_all():
    query, key, value, _ = draw((2, 4, 2, 0, 6, 8), 7)
    got, edited = correct_rows(query, key, value, None, 0.3, [(Tilt(), seen(6, batch=2, rows=0))])
    assert got.shape == (2, 0, 4, 9)
    assert edited.shape == (2, 4, 0)


def test_observers_see_each_piece_before_its_edit():
    shape = (1, 2, 1, 7, 9, 8)
    query, key, value, _ = draw(shape, 8)
    allowed = causal(7, 9, 2)
    view = replace(seen(9, rows=7, image=(1, 2), allowed=allowed[None, None]), marks={"odd": torch.ones(1, 7).bool()})
    pieces, done = {"tilt": [], "halve": []}, {"tilt": [], "halve": []}

    def observe(correction, values, piece, edited):
        start = sum(len(part) for part in pieces[correction.name])
        assert torch.equal(piece.allowed[0, 0], allowed[start : start + values.shape[2]])
        pieces[correction.name].append(values[0, 0])
        done[correction.name].append(edited)

    correct_rows(query, key, value, None, 0.3, [(Tilt(), view), (Halve(), view)], budget=2000, observe=observe)
    assert len(pieces["tilt"]) > 2
    assert torch.equal(torch.cat(done["tilt"], 2), torch.tensor([True, False])[None, :, None].expand(1, 2, 7))
    tilt = torch.zeros(9, dtype=torch.float64)
    logits = (query[0, 0] @ key[0, 0].T * 0.3).masked_fill(~allowed, torch.finfo(torch.float64).min)
    assert torch.allclose(torch.cat(pieces["tilt"]), logits)
    tilt[1:3] = 1
    assert torch.allclose(torch.cat(pieces["halve"]), (logits + tilt).softmax(-1), atol=TIGHT)


class Allocated(TorchDispatchMode):
    """Bytes of new tensors that are alive at once, and the shapes of all of them."""

    def __init__(self, *given):
        super().__init__()
        self.given = {tensor.untyped_storage()._cdata for tensor in given}
        self.live, self.peak, self.shapes = {}, 0, set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.shapes.add(tuple(tensor.shape))
                storage = tensor.untyped_storage()
                if storage._cdata not in self.given and storage._cdata not in self.live:
                    self.live[storage._cdata] = storage.nbytes()
                    weakref.finalize(storage, self.live.pop, storage._cdata, None)
                    self.peak = max(self.peak, sum(self.live.values()))
        return result


@pytest.mark.parametrize("mask", ["causal", "bool", "float", "validity"])
def test_memory_stays_within_the_budget(mask):
    """A tail of 600 rows of 4096: nothing of [.., N, N], and less than the budget beyond what goes in and out."""
    rows, width = 600, 4096
    query, key, value, _ = draw((1, 4, 1, rows, width, 8), 9, torch.float32)
    allowed = causal_fast(rows, width)
    view = replace(seen(width, rows=rows, allowed=allowed), image=torch.arange(width)[None] < 3000)
    given = {
        "causal": None,
        "bool": allowed,
        "float": torch.zeros(1, 1, rows, width).masked_fill(~allowed, -1e9),
        "validity": torch.ones(1, width),
    }[mask]
    budget = 2**23
    inputs = [t for t in (query, key, value, allowed, view.rows, view.image, given) if t is not None]
    with Allocated(*inputs) as seen_by:
        got, _ = correct_rows(query, key, value, given, 0.3, [(Tilt(), view)], budget=budget)
    assert budget / 4 < seen_by.peak < budget + 2 * got.numel() * 4  # pieces of the output, and their concatenation
    assert not [s for s in seen_by.shapes if s[-2:] == (width, width) or s[-2:] == (rows, width)]


def causal_fast(rows, width):
    return (torch.arange(width) <= torch.arange(width - rows, width)[:, None])[None, None]


def test_edits_are_in_the_order_in_which_they_act():
    query, key, value, _ = draw((1, 2, 1, 2, 5, 4))
    view = replace(seen(5, rows=2), marks={"odd": torch.ones(1, 2).bool()})
    with pytest.raises(ValueError, match=r"halve \(weights\), tilt \(logits\)"):
        correct_rows(query, key, value, None, 0.3, [(Halve(), view), (Tilt(), view)])


def test_what_does_not_fit():
    query, key, value, _ = draw((1, 2, 1, 2, 5, 4))
    for view in (seen(6, rows=2), seen(5, rows=3), seen(5, rows=2, may=torch.ones(1, 3).bool())):
        with pytest.raises(ValueError, match="tilt: a view of allowed"):
            correct_rows(query, key, value, None, 0.3, [(Tilt(), view)])
    with pytest.raises(ValueError, match=r"value \(1, 1, 4, 5\) do not fit"):
        correct_rows(query, key, value[:, :, 1:], None, 0.3, [])
    with pytest.raises(ValueError, match="budget=0"):
        correct_rows(query, key, value, None, 0.3, [], budget=0)

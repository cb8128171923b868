"""What patterns build is computed as one softmax over the kept keys, by every back-end that runs here."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.support.kept import PATTERNS, SHAPES, SMALL, L, check, seen, shaped, visible
from vlmopt.kernels.patterns import AShape, Boundary2D, DensePattern, QBoundary
from vlmopt.kernels.sparse_attention import run_plan

DENSE = DensePattern(**SMALL)
EVERYTHING = {
    "dense": DENSE,
    "q_boundary": QBoundary(text=DENSE, vision=AShape(sink=400, local=400, **SMALL)),
    "boundary_2d": Boundary2D(
        text_text=DENSE, text_vision=DENSE, vision_vision=DENSE, vision_text=AShape(sink=400, local=400, **SMALL)
    ),
}


def with_values(p, seed=1):
    return replace(p, v=torch.randn(p.k.shape, generator=torch.Generator().manual_seed(seed)))


def attend(p, launches, **more):
    return run_plan(p, launches, **more)


def masked(p, kept):
    """Softmax over the kept keys in fp64, and its log-sum-exp."""
    group = p.q.shape[1] // p.k.shape[1]
    k, v = (x.double().repeat_interleave(group, 1) for x in (p.k, p.v))
    logits = (p.q.double() @ k.transpose(-1, -2) * p.scale).masked_fill(~kept, -torch.inf)
    return logits.softmax(-1).nan_to_num(0) @ v, logits.logsumexp(-1)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", PATTERNS)
def test_output_is_masked_attention_over_the_kept_keys(name, shape):
    p = with_values(shaped(shape))
    launches = PATTERNS[name].build(p)
    expected, mass = masked(p, seen(p, launches).bool())
    out, lse = attend(p, launches, return_lse=True)
    assert torch.allclose(out.double(), expected, atol=1e-4)
    assert torch.allclose(lse.double(), mass, atol=1e-4)
    assert torch.allclose(attend(p, launches).double(), expected, atol=1e-4)


@pytest.mark.parametrize("name", PATTERNS)
def test_the_oracle_reads_the_same_index(name):
    p = with_values(shaped("right_chunk", width=200, q_len=L([100, 37]), k_len=L([200, 137])))
    launches = PATTERNS[name].build(p)
    a, b = (attend(p, launches, backend=backend) for backend in ("reference", "gather"))
    assert torch.allclose(a, b, atol=1e-4)


@pytest.mark.parametrize("name", PATTERNS)
def test_recall_is_the_difference_of_log_sum_exps_and_constant_values_stay(name):
    p = with_values(shaped("chunk"))
    p = replace(p, v=torch.ones_like(p.k))
    launches = PATTERNS[name].build(p)
    out, lse = attend(p, launches, return_lse=True)
    assert torch.allclose(out, torch.ones_like(out), atol=1e-4)  # no key counted twice
    _, dense = masked(p, visible(p).expand(-1, 4, -1, -1))
    kept = seen(p, launches).bool()
    logits = p.q.double() @ p.k.double().repeat_interleave(2, 1).transpose(-1, -2) * p.scale
    weights = logits.masked_fill(~visible(p), -torch.inf).softmax(-1)
    assert torch.allclose((lse - dense).exp(), (weights * kept).sum(-1), atol=1e-4)


@pytest.mark.parametrize("name", PATTERNS)
def test_heads_of_a_group_read_keys_that_are_not_repeated(name):
    p = with_values(shaped("plain"))
    repeated = replace(p, k=p.k.repeat_interleave(2, 1), v=p.v.repeat_interleave(2, 1))
    grouped, alone = (attend(x, PATTERNS[name].build(x)) for x in (p, repeated))
    assert torch.allclose(grouped, alone, atol=1e-5)


@pytest.mark.parametrize("name", EVERYTHING)
def test_interleaved_segments_of_any_length_equal_dense_attention(name):
    lengths = [1, 63, 64, 65, 257, 1]
    modality = torch.cat([torch.full((n,), i % 2) for i, n in enumerate(lengths)])[None]
    p = with_values(replace(shaped("plain", width=sum(lengths)), modality=modality))
    out = attend(p, EVERYTHING[name].build(p))
    expected, _ = masked(p, visible(p).expand(-1, 4, -1, -1))
    assert torch.allclose(out.double(), expected, atol=1e-4)


@pytest.mark.parametrize("name", EVERYTHING)
@pytest.mark.parametrize("side", ["k_start", "k_len"])
def test_padded_samples_equal_themselves_alone(name, side):
    real = [1, 63, 64, 65, 300]
    lengths = {"k_start": 300 - L(real)} if side == "k_start" else {"q_len": L(real), "k_len": L(real)}
    p = with_values(replace(shaped("plain", batch=5), **lengths))
    out = attend(p, EVERYTHING[name].build(p))
    for b, n in enumerate(real):
        where = slice(300 - n, 300) if side == "k_start" else slice(0, n)
        cut = {x: getattr(p, x)[b : b + 1, :, where] for x in ("q", "k", "v")}
        alone = replace(p, **cut, modality=p.modality[b : b + 1, where], q_len=None, k_len=None, k_start=None)
        assert torch.allclose(out[b : b + 1, :, where], attend(alone, EVERYTHING[name].build(alone)), atol=1e-4)
        rest = torch.ones(300, dtype=torch.bool)
        rest[where] = False
        assert not bool(out[b][:, rest].any())


@pytest.mark.parametrize("name", EVERYTHING)
@pytest.mark.parametrize("chunk", [100, 256])
def test_chunks_equal_one_shot(name, chunk):
    p = with_values(shaped("plain"))
    parts = []
    for start in range(0, 300, chunk):
        stop = min(start + chunk, 300)
        seen_by_then = {"k": p.k[:, :, :stop], "v": p.v[:, :, :stop], "modality": p.modality[:, :stop]}
        part = replace(p, q=p.q[:, :, start:stop], **seen_by_then)
        parts.append(attend(part, EVERYTHING[name].build(part)))
    assert torch.allclose(torch.cat(parts, 2), attend(p, EVERYTHING[name].build(p)), atol=1e-4)


def test_rows_of_two_modalities_make_one_launch():
    p = shaped("plain")
    launches = PATTERNS["q_boundary"].build(p)
    assert len(launches) == 1
    check(p, launches)

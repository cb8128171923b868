"""The GPU kernel against the oracle, on a GPU or else in Triton's interpreter."""

from __future__ import annotations

import copy
import importlib.util
import json
import os
import subprocess
import sys
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

import vlmopt
from tests.support.families import FAMILIES, Image
from tests.support.sparse import call
from tests.support.sparse_calls import DEVICE, dense_index, inputs, random_index, some_rows
from vlmopt.kernels.patterns import AShape
from vlmopt.kernels.sparse_attention import Keys
from vlmopt.kernels.sparse_attention.reference import reference_attention
from vlmopt.policy import Policy
from vlmopt.prefill import SparsePrefill

GPU = torch.cuda.is_available()
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # Triton reads it when imported: hence a process of its own
TOLERANCE = {torch.float32: 5e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


@pytest.mark.slow
@pytest.mark.skipif(GPU or INTERPRETED, reason="the kernel is tested in this process")
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed (extra triton)")
def test_the_kernel_in_the_interpreter():
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", f"{__file__}::TestKernel"]
    done = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    print(done.stdout)


@pytest.mark.skipif(INTERPRETED, reason="the interpreter holds any tile")
def test_fp32_tiles_that_no_gpu_holds_are_refused():
    pytest.importorskip("triton")
    from vlmopt.kernels.sparse_attention.triton import refusal

    facts = {"is_cuda": True, "shape": (1, 1, 1, 128), "requires_grad": False}
    for tile, dtype in product((128, 256), (torch.float32, torch.bfloat16)):
        refused = tile == 256 and dtype is torch.float32
        each = SimpleNamespace(dtype=dtype, **facts)
        index = SimpleNamespace(tile=tile, run=64, slash=None)
        said = refusal(SimpleNamespace(q=each, k=each, v=each, keys=None), SimpleNamespace(index=index))
        assert ("do not fit" in said) == refused
        assert refused or not said


@pytest.mark.slow
@pytest.mark.skipif(GPU or INTERPRETED, reason="the benchmark runs on the GPU")
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed (extra triton)")
def test_the_benchmark_in_the_interpreter(tmp_path):
    script = Path(__file__).parents[2] / "benchmarks" / "gpu" / "sparse_prefill.py"
    command = [sys.executable, str(script), "--interpret", "--parts", "attention", "ttft", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    lines = [json.loads(line) for line in (tmp_path / "sparse_prefill_gpu.jsonl").read_text().splitlines()]
    assert [line["part"] for line in lines] == ["attention", "ttft"]


def agree(q, k, v, index, **more):
    """Outputs and log-sum-exps are the oracle's; rows that see nothing are 0 and -inf."""
    from vlmopt.kernels.sparse_attention.triton import triton_attention

    called = call(q, k, v, index, **more)
    out, lse = triton_attention(*called, True)
    want, want_lse = reference_attention(*called, True)
    tolerance = TOLERANCE[q.dtype]
    torch.testing.assert_close(out, want, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(lse, want_lse, atol=TOLERANCE[torch.float32], rtol=1e-5)  # infinities are compared too
    assert out.dtype == q.dtype
    assert bool((out[lse == -torch.inf] == 0).all())
    return out, lse


CALLS = {
    "fewer rows than keys, shift, first key": {"causal_shift": 7, "key_min": 20},
    "first key per sample": {"key_min": torch.tensor([3, 60])},
    "rows that step together": {"causal_shift": 30, "row_step": 32},
    "right padding": {"q_len": torch.tensor([90, 41]), "k_len": torch.tensor([130, 81])},
    "left padding": {"k_start": torch.tensor([0, 70])},
    "scale and soft cap": {"scale": 0.4, "softcap": 1.5},
}


class TestKernel:
    __test__ = GPU or INTERPRETED

    @pytest.mark.parametrize(("d", "group"), [(16, 2), (64, 1), (80, 7), (96, 2), (128, 8)])
    def test_head_sizes_and_groups(self, d, group):
        q, k, v = inputs(heads=group, key_heads=1, d=d)
        agree(q, k, v, random_index(q, k))

    def test_in_a_policy(self):
        family = FAMILIES["llava"]
        batch, model = family.inputs([[60, Image(0), 30]]), copy.deepcopy(family.build("sdpa")).to(DEVICE)
        found = []
        for backend in ("triton", "reference"):
            pattern = AShape(sink=16, local=16, tile=16, run=16)
            prefill = SparsePrefill(pattern=pattern, min_len=1, max_work=1.0, backend=backend)
            with vlmopt.optimized(model, Policy(prefill=prefill)), torch.no_grad():
                found.append(model(**{name: value.to(DEVICE) for name, value in batch().items()}).logits)
                assert {entry["backend"] for entry in vlmopt.report(model).prefill} == {backend}
        torch.testing.assert_close(*found, atol=1e-4, rtol=0)

    @pytest.mark.parametrize("dtype", [torch.float16, *([torch.bfloat16] if GPU else [])])
    def test_half_precision(self, dtype):
        q, k, v = inputs(dtype=dtype)
        agree(q * 3, k * 3, v, random_index(q, k))

    @pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
    def test_limits(self, call):
        q, k, v = inputs(90, 130, batch=2)
        call = {n: x.to(DEVICE) if torch.is_tensor(x) else x for n, x in call.items()}
        whole = "softcap" in call or "q_len" in call  # else runs before a tile's first row are not seen whole
        agree(q, k, v, random_index(q, k, full=whole), **call)

    def test_padding_rows_stay_empty_whatever_is_called_full(self):
        q, k, v = inputs(heads=2, key_heads=2)
        index = dense_index(q, k, 32, 32)
        index.run_full[:] = 0
        index.run_full[:, :, 0] = 2  # rows 0-31 are padding: any run is seen by all of its real rows
        agree(q, k, v, index, k_start=torch.tensor([40], device=DEVICE))

    def test_runs_in_several_blocks_and_tables_per_key_head(self):
        q, k, v = inputs(200)
        agree(q, k, v, random_index(q, k, run=128, runs=0.8, tables=2))

    def test_some_rows_in_any_order(self):
        q, k, v = inputs(90, 130, batch=2)
        index = random_index(q, k, q_order=some_rows(2, 4, 90, 70), full=False)
        _, lse = agree(q, k, v, index)
        assert int((lse == -torch.inf).sum()) >= 2 * 4 * 20  # rows without a slot
        agree(q, k, v, random_index(q, k, q_order=some_rows(2, 1, 90, 100), full=False))  # one order for all heads

    @pytest.mark.parametrize("slots", [100, 150])
    def test_keys_in_any_order(self, slots):
        q, k, v = inputs(90, 130, batch=2)
        orders = {"q_order": some_rows(2, 4, 90, 90), "k_order": some_rows(2, 2, 130, slots)}
        agree(q, k, v, random_index(q, k, full=False, **orders))

    def test_pooled_keys(self):
        q, k, v = inputs(90, 130, batch=2)
        keys = Keys(torch.randint(0, 100, (2, 2, 130), device=DEVICE), torch.randn(2, 1, 130, device=DEVICE))
        agree(q, k, v, random_index(q, k, full=False), keys=keys, k_len=torch.tensor([100, 95], device=DEVICE))

    def test_a_subset_of_heads(self):
        q, k, v = inputs(heads=6)
        out, _ = agree(q, k, v, random_index(q, k, tables=3, heads=torch.tensor([5, 0, 3])))
        assert out.shape == (1, 3, 100, 64)

    @pytest.mark.parametrize("permuted", [False, True])
    def test_grid_columns(self, permuted):
        q, k, v = inputs(90, 130, batch=2)
        grid = torch.tensor([[7, 0, 1], [36, 35, 1], [5, 60, 1], [3, 1, 0]]).int().expand(2, 4, 3)
        order = some_rows(2, 2, 130, 120) if permuted else None
        index = random_index(q, k, run=16, grid=grid, k_order=order, full=False)
        agree(q, k, v, index, key_min=9, causal_shift=4)

    @pytest.mark.parametrize("class_major", [False, True])
    def test_slashes_meet_grid_columns(self, class_major):
        q, k, v = inputs(40, 70)
        slash = torch.tensor([[[7, 3], [20, -5], [0, 0], [12, 11]]]).int()
        grid = torch.tensor([[[7, 3, 1], [10, 1, 1], [9, 8, 1], [5, 2, 0]]]).int()
        order = (torch.arange(40) + 30).remainder(7).argsort(stable=True).int().expand(1, 4, -1)
        index = random_index(
            q, k, tile=16, runs=0, columns=0, grid=grid, slash=slash, q_order=order if class_major else None
        )
        agree(q, k, v, index, causal_shift=5, key_min=4)

    @pytest.mark.parametrize(("tile", "run"), [(64, 64), (128, 32), (32, 16)])
    def test_all_keys_are_dense_attention(self, tile, run):
        q, k, v = inputs(97, heads=2, key_heads=2)
        out, _ = agree(q, k, v, dense_index(q, k, tile, run))
        torch.testing.assert_close(out, scaled_dot_product_attention(q, k, v, is_causal=True), atol=1e-4, rtol=0)

    def test_the_future_is_not_read(self):
        """NaN in keys that no row of a tile sees, 1e30 in those that some do not see."""
        from vlmopt.kernels.sparse_attention.triton import triton_attention

        q, k, v = inputs(128)
        index = dense_index(q, k, 64, 64)
        clean = triton_attention(*call(q, k, v, index))
        k[:, :, 64:] = v[:, :, 64:] = torch.nan
        v[:, :, 40:64] = 1e30
        assert torch.equal(triton_attention(*call(q, k, v, index))[:, :, :40], clean[:, :, :40])

    def test_mass_is_recall(self):
        q, k, v = inputs(dtype=torch.float32)
        index = random_index(q, k)
        out, lse = agree(q, k, torch.ones_like(v), index)
        torch.testing.assert_close(out[lse > -torch.inf], torch.ones_like(out[lse > -torch.inf]), atol=1e-5, rtol=0)
        _, dense = agree(q, k, v, dense_index(q, k, 64, 64))
        assert bool((lse <= dense + 1e-4).all())

    def test_large_logits_and_the_same_bits_twice(self):
        from vlmopt.kernels.sparse_attention.triton import triton_attention

        q, k, v = inputs()
        index = random_index(q, k)
        out, _ = agree(q * 30, k, v, index)
        assert torch.equal(triton_attention(*call(q * 30, k, v, index)), out)

    def test_views(self):
        q, k, v = inputs()
        index = random_index(q, k)
        plain, _ = agree(q, k, v, index)
        packed = torch.cat([x.transpose(1, 2).flatten(2) for x in (q, k, v)], -1)  # rows of a fused projection
        q, k, v = (x.unflatten(-1, (-1, 64)).transpose(1, 2) for x in packed.split([256, 128, 128], -1))
        assert torch.equal(agree(q, k, v, index)[0], plain)

    def test_elements_beyond_32_bits(self):
        """Rows of keys 2^26 elements apart: of the 4.6 GB that they span, the pages that are read exist."""
        far = torch.empty(33 << 26, dtype=torch.float16, device=DEVICE)
        k = far.as_strided((1, 1, 33, 16), (0, 0, 1 << 26, 1))
        k.copy_(torch.randn(1, 1, 33, 16))
        q, _, v = inputs(33, heads=1, key_heads=1, d=16, dtype=torch.float16)
        agree(q, k, v, random_index(q, k, tile=16, run=16, runs=0.9))

    @pytest.mark.parametrize("dtype", TOLERANCE)
    def test_every_size_has_configurations(self, dtype):
        from vlmopt.kernels.sparse_attention import triton as launches

        named = {"q": torch.empty(0, dtype=dtype)}
        for tile, run, (body, _) in product(launches.SIZES, launches.SIZES, launches.HEADS.values()):
            blocks = [
                c.kwargs["BLOCK"] for c in launches._fitting(launches.CONFIGS, named, TILE=tile, RUN=run, BODY=body)
            ]
            assert blocks
            assert all(run % block == 0 for block in blocks)

    def test_refusals(self):
        from vlmopt.kernels.sparse_attention.triton import triton_attention

        q, k, v = inputs(64)
        good = dense_index(q, k, 64, 64)
        with pytest.raises(ValueError, match="unit stride"):
            triton_attention(*call(q.mT.contiguous().mT, k, v, good))
        with pytest.raises(ValueError, match="heads of"):
            triton_attention(*call(q[..., :24], k[..., :24], v[..., :24], good))
        with pytest.raises(ValueError, match="tile and run"):
            triton_attention(*call(q, k, v, dense_index(q, k, 48, 64)))
        with pytest.raises(ValueError, match="no backward"):
            triton_attention(*call(q.requires_grad_(), k, v, good))
        if INTERPRETED:
            with pytest.raises(ValueError, match="bfloat16"):
                triton_attention(*call(*(x.detach().bfloat16() for x in (q, k, v)), good))

"""Tensor parallelism on two ranks: what reads embeddings chooses alike on both, what reads heads is refused."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import vlmopt
from tests.support.families import FAMILIES, Image
from tests.support.mechanism import forward
from vlmopt.pruning import DivPrune

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without distribution")
RANK = """
import os, sys
import torch
import torch.distributed as dist

dist.init_process_group("gloo")
import transformers
import vlmopt
from tests.support.families import FAMILIES, Image
from tests.support.mechanism import forward
from vlmopt import attention_fix, kv, prefill, pruning, reading
from vlmopt.kernels.patterns import MinP

model = transformers.LlavaForConditionalGeneration.from_pretrained(sys.argv[1], tp_plan="auto").eval()
assert model.tp_size == 2, model.tp_size
batch = FAMILIES["llava"].inputs([[5, Image(0), 7]])
dense = forward(model, batch)
for policy in (
    pruning.FastV(keep_ratio=0.5, layer=2),
    pruning.ZeroOrder(keep_ratio=0.5),
    pruning.CoreMatching(layer=2),
    attention_fix.ImageBoost(layers="1:"),
    kv.SnapKV(keep_ratio=0.5),
    prefill.SparsePrefill(pattern=MinP()),
    reading.SparseReading(),
):
    try:
        vlmopt.optimize(model, policy)
    except ValueError as error:
        assert "2 ranks" in str(error) and "div_prune" in str(error), error
    else:
        raise AssertionError(f"{policy} was taken")
vlmopt.optimize(model, pruning.DivPrune(keep_ratio=0.5))
pruned = forward(model, batch)
kept = vlmopt.report(model).rows()
both = [torch.empty_like(kept) for _ in range(2)]
dist.all_gather(both, kept)
assert torch.equal(*both)
assert torch.equal(forward(vlmopt.restore(model), batch), dense)
if dist.get_rank() == 0:
    torch.save((pruned, kept), sys.argv[2])
dist.destroy_process_group()
"""


def test_two_ranks(tmp_path: Path) -> None:
    whole, batch = FAMILIES["llava"].fresh(), FAMILIES["llava"].inputs([[5, Image(0), 7]])
    whole.save_pretrained(tmp_path / "model")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    script = [sys.executable, "-c", RANK, str(tmp_path / "model"), str(tmp_path / "found")]
    ranks = [
        subprocess.Popen(
            script,
            env={**os.environ, **settings, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            cwd=Path(__file__).parents[2],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [rank.communicate(timeout=240)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(said)
    pruned, kept = torch.load(tmp_path / "found")
    with vlmopt.optimized(whole, DivPrune(keep_ratio=0.5)):
        expected = forward(whole, batch)
        assert torch.equal(vlmopt.report(whole).rows(), kept)
    assert torch.allclose(pruned[kept], expected[kept], atol=1e-4)

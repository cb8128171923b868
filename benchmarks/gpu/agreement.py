"""Do pruned models say on a GPU what the masked reference says? Tiny random models of six families."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

import common  # noqa: F401  (lets `tests` be found)
import vlmopt
from tests.support.families import FAMILIES, Batch
from tests.support.mechanism import Case, answer, forward

FAMILY_NAMES = ("qwen2_5_vl", "qwen3_vl", "llava", "llava_next", "internvl", "smolvlm")
FLASH = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface"}
SLACK = 2.0  # times the rounding of the dense model itself


def family(name: str, device: str, dtype: torch.dtype) -> dict[str, Any]:
    """Prune at three layers, and compare kept rows with the fp32 reference on the CPU.

    Rounding in `dtype` is measured on the dense model: the pruned one may be off by no more than `SLACK` times that.
    """
    case = Case(FAMILIES[name], "progressive", "keep", "ragged")
    batch, truth = case.batch, answer(case)
    dense = forward(case.model(), batch)
    rows = []
    for kernel in ("sdpa", *(kernel for kernel, module in FLASH.items() if device == "cuda" and find_spec(module))):
        model = case.model(kernel).to(device, dtype)
        moved = Batch({key: there(x, device, dtype) for key, x in batch.inputs.items()}, batch.span)
        rounding = off(forward(model, moved), dense, batch.real)
        with vlmopt.optimized(model, case.policy):
            pruned = off(forward(model, moved), truth.forward, truth.kept)
        right = pruned <= SLACK * rounding + 1e-4
        print(f"{name} {kernel}: off by {pruned:.1e}, dense by {rounding:.1e}{'' if right else '  WRONG'}", flush=True)
        rows.append({"kernel": kernel, "pruned": pruned, "dense": rounding, "right": right})
    return {"rows": rows, "right": all(row["right"] for row in rows)}


def there(x: Tensor, device: str, dtype: torch.dtype) -> Tensor:
    return x.to(device, dtype if x.is_floating_point() else x.dtype)


def off(logits: Tensor, expected: Tensor, rows: Tensor) -> float:
    return float((logits.float().cpu()[rows] - expected[rows]).abs().max())

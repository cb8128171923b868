"""Compute sparse attention on CPUs by a small C++ kernel, compiled once per machine for its vector units.

Products are those of the BLAS inside torch; what is ours is the order of work: naming the keys of a tile and keeping
its scores in a core's cache. Needs a C++ compiler (`c++`, `g++` or `clang++`); takes some seconds on first use.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from filelock import FileLock
from torch import Tensor

from .index import Launch
from .inputs import AttentionInputs, shared_refusal

SOURCE = Path(__file__).with_suffix(".cpp")
FLAGS = (
    "-std=c++20", "-O3", "-march=native", "-mprefer-vector-width=512", "-fno-math-errno", "-fno-trapping-math",
    "-fno-strict-aliasing", "-fopenmp", "-DAT_PARALLEL_OPENMP=1", "-shared", "-fPIC",
)  # fmt: skip
DTYPES = (torch.float32, torch.bfloat16)
POINTERS = (
    "q", "k", "v", "out", "lse", "heads", "rows_end", "offset", "start", "first", "run_ptr", "run_start", "col_ptr",
    "col_idx", "q_order", "k_order", "grid", "slash", "key_position", "bias",
)  # fmt: skip
SIZES = (
    "batch", "query_heads", "key_heads", "tables", "shared", "rows", "width", "d", "tile", "tiles", "run", "row_slots",
    "key_slots", "q_orders", "k_orders", "positions", "biases", "causal_shift", "row_step",
)  # fmt: skip


class _Call(ctypes.Structure):
    """The struct of the same name in native.cpp."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in POINTERS),
        *((f"{name}_strides", ctypes.c_int64 * 3) for name in "qkv"),
        *((name, ctypes.c_int64) for name in SIZES),
        ("scale", ctypes.c_float),
        ("softcap", ctypes.c_float),
    ]


def refusal(inputs: AttentionInputs, launch: Launch, return_lse: bool = False) -> str:
    """Return why this back-end cannot run such a call, in words; empty if it can."""
    if inputs.q.device.type != "cpu":
        return "native runs on CPUs; use backend='auto'"
    dtypes = {x.dtype for x in (inputs.q, inputs.k, inputs.v)}
    if len(dtypes) > 1 or not dtypes <= set(DTYPES):
        got = ", ".join(sorted(str(dtype) for dtype in dtypes))
        return f"native computes float32 and bfloat16, the same for q, k and v, got {got}; use backend='gather'"
    if reason := shared_refusal("native", inputs, launch.index):
        return reason
    return "" if isinstance(_library(), ctypes.CDLL) else f"{_library()}; use backend='gather'"


def native_attention(
    inputs: AttentionInputs, launch: Launch, return_lse: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """Compute `sparse_attention` on CPUs.

    Keys that no row of a tile sees are not read, so they may hold NaN.

    Raises:
        ValueError: what `refusal` names.
    """
    index, q = launch.index, inputs.q
    if reason := refusal(inputs, launch):
        raise ValueError(reason)
    heads = torch.arange(q.shape[1]) if index.heads is None else index.heads
    out = q.new_zeros(len(q), len(heads), q.shape[2], q.shape[3])
    lse = torch.full(out.shape[:3], -torch.inf, dtype=torch.float32) if return_lse else None
    keys = inputs.keys
    position, bias = (None, None) if keys is None else (keys.key_position, keys.bias)
    first = inputs.key_first.clamp_min(launch.key_min)
    tables: dict[str, tuple[Tensor | None, torch.dtype]] = {
        "heads": (heads, torch.long), "rows_end": (inputs.row_end, torch.long), "offset": (inputs.offset, torch.long),
        "start": (inputs.key_first, torch.long), "first": (first, torch.long),
        "run_ptr": (index.run_ptr, torch.long), "run_start": (index.run_start, torch.int32),
        "col_ptr": (index.col_ptr, torch.long), "col_idx": (index.col_idx, torch.int32),
        "q_order": (index.q_order, torch.int32), "k_order": (index.k_order, torch.int32),
        "grid": (index.grid, torch.int32), "slash": (index.slash, torch.int32),
        "key_position": (position, torch.long), "bias": (bias, torch.float32),
    }  # fmt: skip
    held = {name: x.to(dtype).contiguous() for name, (x, dtype) in tables.items() if x is not None}
    held |= {"q": q, "k": inputs.k, "v": inputs.v, "out": out} | ({} if lse is None else {"lse": lse})
    second = (1 if x is None else x.shape[1] for x in (index.q_order, index.k_order, position, bias))
    sizes = (
        len(q), q.shape[1], inputs.k.shape[1], index.covered, len(heads) // index.covered, inputs.rows, inputs.width,
        q.shape[3], index.tile, index.tiles, index.run,
        inputs.rows if index.q_order is None else index.q_order.shape[2],
        inputs.width if index.k_order is None else index.k_order.shape[2],
        *second, launch.causal_shift, launch.row_step,
    )  # fmt: skip
    call = _Call(
        **{name: x.data_ptr() for name, x in held.items()},
        **{f"{name}_strides": held[name].stride()[:3] for name in "qkv"},
        **dict(zip(SIZES, sizes, strict=True)),
        scale=inputs.scale, softcap=inputs.softcap or 0.0,
    )  # fmt: skip
    getattr(_library(), f"attend_{str(q.dtype).removeprefix('torch.')}")(ctypes.byref(call))
    return out if lse is None else (out, lse)


@functools.cache
def _library() -> ctypes.CDLL | str:
    """Return the compiled kernel, or why there is none."""
    compiler = next((found for name in ("c++", "g++", "clang++") if (found := shutil.which(name))), None)
    if compiler is None:
        return "native needs a C++ compiler (c++, g++ or clang++), and none is on the path"
    root = Path(torch.__file__).parent
    made_of = (SOURCE.read_bytes(), FLAGS, torch.__version__, root, compiler, _processor())
    folder = Path.home() / ".cache" / "vlmopt"
    built = folder / f"native-{hashlib.sha256(repr(made_of).encode()).hexdigest()[:16]}.so"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{built}.lock"):
            if not built.exists():
                _compile(compiler, root, built)
        return ctypes.CDLL(str(built))
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        return f"native could not be compiled or loaded ({said.strip().splitlines()[0]})"


def _compile(compiler: str, root: Path, built: Path) -> None:
    with tempfile.TemporaryDirectory(dir=built.parent) as folder:
        made = Path(folder) / built.name
        command = [
            compiler, *FLAGS, f"-I{root / 'include'}", f"-L{root / 'lib'}", str(SOURCE), "-o", str(made),
            "-ltorch_cpu", "-lc10",
        ]  # fmt: skip
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=600)
        os.replace(made, built)


def _processor() -> str:
    """Return what -march=native stands for on this machine.

    Home directories are shared by machines of several kinds.
    """
    info = Path("/proc/cpuinfo")
    flags = (
        next((line for line in info.read_text().splitlines() if line.startswith("flags")), "") if info.exists() else ""
    )
    return f"{platform.machine()} {platform.processor()} {flags}"

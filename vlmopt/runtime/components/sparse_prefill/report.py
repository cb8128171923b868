"""What sparse prefill did in one call, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...call import Call


@dataclass(frozen=True, eq=False)
class Ran:
    """One layer's sparse prefill."""

    backend: str
    patterns: dict[str, int]  # name -> heads
    tokens: int
    work: Tensor  # fp32 scalar: cells computed over those of the causal triangle, padding among them
    dense_heads: Tensor  # Long scalar: heads for which every visible cell is computed
    index: tuple[Any, Any]  # start and end
    attention: tuple[Any, Any]
    dense_rows: int
    recall: Tensor | None = None  # fp32 [B, H, R]


class Sparse(dict[int, list[Ran]]):
    """State of a page: layer -> its sparse prefills, chunk by chunk."""


def sparse_layers(call: Call) -> list[dict[str, Any]]:
    """Return one entry per layer whose prompt attention was sparse.

    `work` is the share of the causal triangle that was computed, `dense_heads` the heads that read every key (the
    mean over chunks), `recall` the mean share of the dense attention that
    sampled rows keep (None unless asked for), `index_ms` and `attention_ms` the time of estimating and of computing.
    """
    ms, out = call.ledger.clock.ms, []
    for layer, runs in sorted(call.page.slot(Sparse).items()):
        recalls = [run.recall for run in runs if run.recall is not None]
        out.append(
            {
                "layer": layer,
                "backend": runs[-1].backend,
                "patterns": runs[-1].patterns,
                "tokens": runs[-1].tokens,
                "work": sum(float(run.work) for run in runs) / len(runs),
                "dense_heads": sum(int(run.dense_heads) for run in runs) / len(runs),
                "dense_rows": sum(run.dense_rows for run in runs),
                "index_ms": sum(ms(*run.index) for run in runs),
                "attention_ms": sum(ms(*run.attention) for run in runs),
                "recall": sum(float(r.nanmean()) for r in recalls) / len(recalls) if recalls else None,
            }
        )
    return out


def lines(entries: list[dict[str, Any]]) -> list[str]:
    """Write the entries as one line of the report's table."""
    if not entries:
        return []
    names = sorted({name for entry in entries for name in entry["patterns"]})
    work = [entry["work"] for entry in entries]
    text = (
        f"applied  sparse prefill ({', '.join(names)}; {entries[0]['backend']}) in {len(entries)} layers of "
        f"{entries[0]['tokens']} tokens: {100 * sum(work) / len(work):.1f} % of the cells, index "
        f"{sum(e['index_ms'] for e in entries):.1f} ms, attention {sum(e['attention_ms'] for e in entries):.1f} ms"
    )
    dense, heads = sum(e["dense_heads"] for e in entries), sum(sum(e["patterns"].values()) for e in entries)
    text += f"; {dense:g} of {heads} heads dense" if dense else ""
    recalls = [entry["recall"] for entry in entries if entry["recall"] is not None]
    return [text + (f", recall {sum(recalls) / len(recalls):.4f}" if recalls else "")]

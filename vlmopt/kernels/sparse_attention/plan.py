"""Run a plan: several launches for one layer, merged by their log-sum-exps where they meet."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .backends import refusal, sparse_attention
from .index import Launch
from .inputs import AttentionInputs
from .merge import merge

MERGED = 1 << 24  # elements at a time


def run_plan(
    inputs: AttentionInputs, launches: Sequence[Launch], *, return_lse: bool = False, backend: str = "auto"
) -> Tensor | tuple[Tensor, Tensor]:
    """Compute one softmax over the keys of all launches.

    The key sets of the launches of a row must be disjoint. Launches may cover different heads and rows; log-sum-exps
    are made only where launches share heads or the caller asks.

    Returns:
        [B, Hq, Sq, D] in the dtype of q, and fp32 [B, Hq, Sq] with `return_lse`; 0 and -inf for rows and heads that no
        launch covers.

    Raises:
        ValueError: as `sparse_attention`.
    """
    q = inputs.q
    covered = heads_of(launches, q.shape[1])
    every, weigh = list(range(q.shape[1])), return_lse or overlap(covered)

    def run(launch: Launch) -> tuple[Tensor, Tensor | None]:
        result = sparse_attention(inputs, launch, return_lse=weigh, backend=backend)
        return result if isinstance(result, tuple) else (result, None)

    if len(launches) == 1 and covered[0] == every:
        out, lse = run(launches[0])
        return out if lse is None or not return_lse else (out, lse)
    out = q.new_zeros(q.shape[0], q.shape[2], q.shape[1], q.shape[3]).transpose(1, 2)
    total = q.new_full(q.shape[:3], -torch.inf, dtype=torch.float32)
    written: set[int] = set()
    for launch, heads in zip(launches, covered, strict=True):
        part, lse = run(launch)
        at = torch.tensor(heads, device=q.device)
        if lse is None or written.isdisjoint(heads):
            out.index_copy_(1, at, part)
            if lse is not None:
                total.index_copy_(1, at, lse)
        else:
            step = max(1, MERGED // (part[:, :, 0].numel()))
            for some in (slice(i, i + step) for i in range(0, q.shape[2], step)):
                merged = merge(out[:, at, some], total[:, at, some], part[:, :, some], lse[:, :, some])
                out[:, at, some], total[:, at, some] = merged
        written |= set(heads)
    return (out, total) if return_lse else out


def plan_refusal(
    inputs: AttentionInputs, launches: Sequence[Launch], *, return_lse: bool = False, backend: str = "auto"
) -> str:
    """Return why a back-end cannot run a plan, in words; empty if it can."""
    weigh = return_lse or overlap(heads_of(launches, inputs.q.shape[1]))
    return next(filter(None, (refusal(inputs, launch, weigh, backend) for launch in launches)), "")


def heads_of(launches: Sequence[Launch], every: int) -> list[list[int]]:
    """Return the query heads that each launch covers."""
    return [list(range(every)) if x.index.heads is None else x.index.heads.tolist() for x in launches]


def overlap(covered: Sequence[Sequence[int]]) -> bool:
    """Return whether launches share heads, so that their results have to be weighed."""
    return len({h for heads in covered for h in heads}) < sum(map(len, covered))

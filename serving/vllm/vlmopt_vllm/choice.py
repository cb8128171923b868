"""Worker: which rows of an item stay where the encoder's output decides, and what goes to the LLM."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad
from vllm.logger import init_logger

from vlmopt.pruning import Selection, VisualEmbeds
from vlmopt.pruning.uniform import spread

from . import markers
from .items import Item
from .plans import Plan
from .policies import KEY, Served, without_padding
from .signals import Heard

logger = init_logger(__name__)


def choice(
    plan: Plan, policy: Served, item: Item, rows: Tensor, width: int, heard: Heard | None
) -> tuple[Tensor, Tensor]:
    """Choose the rows that stay of [n, d]: Long[k], and the rows, with merged ones in the slots they were given.

    A selector that fails must not end the engine: then evenly spread rows stay, and the log says so.
    """
    selector = without_padding(policy.last)
    seen = plan.seen.to(rows.device) if len(plan.seen) else torch.arange(len(rows), device=rows.device)
    try:
        with torch.no_grad():
            signals = {} if heard is None else heard.signals(plan.listens, rows[:, :width])
            signals |= {need: rows[:, :width] for need in selector.captures if isinstance(need, VisualEmbeds)}
            chosen = selector.select(item.tokens(signals, policy.seed, rows.device).subset(seen))
        if not plan.marker and len(chosen.keep) != plan.count:
            raise ValueError(f"{len(chosen.keep)} rows were chosen, {plan.count} were announced")
    except Exception as error:  # whatever it is: behind it stand the requests of others
        logger.error("%s: %s failed, so evenly spread rows stay: %s", KEY, selector.name, error)
        coords = item.tokens({}, policy.seed).coords[seen.cpu()]
        chosen = Selection(spread(coords, min(plan.count, len(seen))).to(rows.device))
    keep = seen[chosen.keep]
    if (written := chosen.written) is not None:
        rows = rows.clone()
        rows[seen[written.slots]] = pad(written.embeds.to(rows), (0, rows.shape[1] - width))  # DeepStack adds nothing
    if plan.marker:
        scores = chosen.scores
        whole = None if scores is None else scores.new_full((len(rows),), torch.nan).scatter(0, seen, scores)
        keep = markers.fitted(keep, whole, len(rows), plan.count)
    return keep, rows


def finished(plan: Plan, rows: Tensor, keep: Tensor, width: int, trained: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return which row of the whole item each is, Long[count], and the rows [count, d] that go to the LLM.

    Args:
        trained: the marker [width] of the engine's own policy; None where it has none.
    """
    if len(rows) != plan.item_total:  # a smaller image was encoded, whose rows lie at `keep`
        return keep, rows
    if not plan.marker:
        return keep, rows[keep]
    marker = plan.marker if trained is None or plan.marker != "trained" else trained
    return markers.with_ends(keep, len(rows)), markers.marked(rows, keep, marker, width)

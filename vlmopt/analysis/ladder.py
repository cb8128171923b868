"""Find what a policy would keep at other ratios, from the signals of one prefill: nothing is generated again."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from vlmopt.pruning import Selection, Selector, VisualTokens

from ..api import optimized, report
from ..policy import Policy
from ..reporting import VisualMap
from .sweep import with_keep_ratio

RATIOS = tuple(n / 20 for n in range(1, 21))


@dataclass(frozen=True, eq=False)
class Ladder:
    """The choices of a policy's last cut on one sample, by keep ratio; earlier cuts stay as they are.

    Exact for every method: its own `select` made them, from what it read in the prefill. Where `adaptive`, the method
    decides how many stay and a ratio is its ceiling.
    """

    method: str
    layer: int
    adaptive: bool
    own: float  # the ratio of the policy itself, of all visual tokens
    kept: Mapping[float, Tensor]  # ratio -> Bool[N] over the sample's visual tokens in sequence order; rising ratios
    merged: Mapping[float, Tensor]  # ratio -> Bool[N]: slots that would carry a mixture of several tokens

    @property
    def ratios(self) -> list[float]:
        return list(self.kept)

    def maps(self, maps: Sequence[VisualMap], ratio: float) -> list[VisualMap]:
        """Return the sample's maps (`Report.maps`) as they would be at `ratio`; markers of dropped runs are left out.

        Raises:
            ValueError: a ratio that is none of `ratios`, or maps of another sample.
        """
        if ratio not in self.kept:
            raise ValueError(f"ratio={ratio!r} is not a rung of this ladder; rungs: {', '.join(map(str, self.ratios))}")
        sizes = [len(m.kept) for m in maps]
        if sum(sizes) != len(self.kept[ratio]):
            raise ValueError(f"these maps hold {sum(sizes)} visual tokens, the ladder {len(self.kept[ratio])}")
        parts = zip(maps, self.kept[ratio].split(sizes), self.merged[ratio].split(sizes), strict=True)
        return [replace(m, kept=kept, merged=merged, markers=torch.zeros_like(kept)) for m, kept, merged in parts]


def ladder(
    model: Any,
    inputs: Mapping[str, Any],
    policy: Any,
    *,
    ratios: Sequence[float] = RATIOS,
    generate: Mapping[str, Any] | None = None,
) -> Ladder | None:
    """Run one prefill under `policy` and ask its last cut for its choice at every ratio, for the first sample.

    Args:
        model: a loaded vision-language model; it is given back as it came. inputs: of `generate`, on its device.
        ratios: fractions of all visual tokens, in (0, 1]; those above what earlier cuts leave are left out, and the
            policy's own is added. generate: further arguments of `model.generate`, which makes one token.

    Returns:
        None where no cut can be asked: none is made, or its choice is made in the tower (as `resize`).

    Raises:
        ValueError: a ratio out of range, or what `optimize` refuses.
    """
    if not all(0 < ratio <= 1 for ratio in ratios):
        raise ValueError(f"ratios must be > 0 and <= 1, got {list(ratios)}")
    policy = Policy.load(policy)
    cuts = policy.active
    if not cuts or cuts[-1].resizes_pixels or cuts[-1].before_tower:
        return None
    seen: list[tuple[VisualTokens, Selection, dict[float, Selection]]] = []
    last = climbing(cuts[-1], ratios, seen)
    with optimized(model, replace(policy, prune=(*cuts[:-1], last))):
        model.generate(**inputs, **{"do_sample": False, **(generate or {}), "max_new_tokens": 1})
        sample = report(model).samples[0]
    if not seen:
        return None  # the cut was skipped: a prompt without images, for one
    tokens, own, choices = seen[0]
    share = sample["visual_tokens_kept"] / sample["visual_tokens"]
    twins = [ratio for ratio, chosen in choices.items() if len(chosen.keep) == len(own.keep) and not last.adaptive]
    found = dict(sorted({**{r: c for r, c in choices.items() if r not in twins}, share: own}.items()))
    return Ladder(
        method=last.name,
        layer=last.layer,
        adaptive=last.adaptive,
        own=share,
        kept={ratio: flags(tokens, chosen.keep) for ratio, chosen in found.items()},
        merged={ratio: flags(tokens, c.written.slots if c.written else None) for ratio, c in found.items()},
    )


def at_ratio(policy: Any, ratio: float) -> Policy:
    """Return the policy whose last cut keeps `ratio` of all visual tokens: the one that a rung of its ladder shows.

    Cuts of a progressive method become methods of their own, each with its one layer.

    Raises:
        ValueError: a policy without cuts, or a ratio outside (0, 1].
    """
    own = Policy.load(policy)
    cuts = own.active
    if not cuts:
        raise ValueError("this policy drops no tokens, so no ratio can be given to it")
    return replace(own, prune=(*cuts[:-1], with_keep_ratio(cuts[-1], ratio)))


def climbing(selector: Selector, ratios: Sequence[float], seen: list[Any]) -> Selector:
    """Return a copy of a selector that, when it is asked, also notes what it would choose at other ratios."""
    own = copy.copy(selector)

    def select(tokens: VisualTokens) -> Selection:
        chosen = selector.select(tokens)
        if not seen:
            reach = [ratio for ratio in ratios if ratio * tokens.total < len(tokens) + 0.5]
            others = {ratio: with_keep_ratio(selector, ratio).select(tokens) for ratio in reach}
            seen.append((tokens, chosen, others))
        return chosen

    object.__setattr__(own, "select", select)  # of this one object; its class and all its settings stay
    return own


def flags(tokens: VisualTokens, index: Tensor | None) -> Tensor:
    """Return Bool[N] on the CPU: the current tokens `index` among all visual tokens of the sample."""
    out = torch.zeros(tokens.total, dtype=torch.bool)
    if index is not None:
        out[tokens.ordinal[index.to(tokens.ordinal.device)].cpu()] = True
    return out

"""Which methods may stand beside one another in a policy, and in which order cuts run."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, pairwise
from typing import Any

from vlmopt.attention_fix import Correction, RowCorrection
from vlmopt.attention_fix.guidance import Guided
from vlmopt.pruning import Selector

from ..decoding import Contrast, SeesPixels
from ..kv import Eviction
from ..reading import SparseReading


def cuts(prune: Sequence[Selector]) -> list[Selector]:
    """Return all stages of the methods that can change something, by rising layer."""
    stages = [stage for method in prune if not method.is_identity for stage in method.stages]
    return sorted(stages, key=order)


def order(stage: Selector) -> tuple[int, bool]:
    """Return the sort key: by rising layer; before a layer, what is chosen before the vision tower comes first."""
    return stage.layer, not stage.before_tower


def check_stages(prune: Sequence[Selector]) -> None:
    """Raise `ValueError` for selectors that contradict each other."""
    stages = sorted((stage for method in prune for stage in method.stages), key=order)
    for first, second in pairwise(stages):
        chooses_among_encoded = first.before_tower and not second.before_tower and not second.resizes_pixels
        if first.layer == second.layer and not chooses_among_encoded:
            raise ValueError(
                f"{first.label} and {second.label} both act before layer {first.layer}; one method per layer, move one"
            )
    active = cuts(prune)
    for unit in ("keep_ratio", "keep_tokens"):
        budgets = [(getattr(stage, unit), stage) for stage in active if getattr(stage, unit) and not stage.adaptive]
        for (before, first), (after, second) in pairwise(budgets):
            if after > before:
                raise ValueError(
                    f"{second.label}: {unit}={after} before layer {second.layer} exceeds {unit}={before} of "
                    f"{first.label} before layer {first.layer}; budgets count original tokens and must not grow"
                )
    policies = {method.numbering: method for method in active}
    if "repack" in policies and len(policies) > 1:
        asked, others = policies.pop("repack").renumbering, sorted(policies)
        raise ValueError(f"{asked} cannot be mixed with {others}: renumber at every stage or at none")


def check_corrections(attention: Sequence[Correction]) -> None:
    """Raise `ValueError` for corrections that contradict each other."""
    for i, first in enumerate(attention):
        for second in attention[i + 1 :]:
            if first.name == second.name:
                raise ValueError(f"{first.name} is given twice; give it once, its `layers` may name several ranges")
            if first.group and first.group == second.group:
                raise ValueError(
                    f"{first.name} and {second.name} are both a kind of {first.group}, at most one acts; leave one out"
                )


def check_eviction(kv: Eviction | None, attention: Sequence[Correction]) -> None:
    """Refuse corrections that read keys by what they are, where heads keep different ones."""
    if kv is None or kv.is_identity or not kv.per_head:
        return
    for correction in attention:
        if isinstance(correction, RowCorrection) and not correction.is_identity:
            raise ValueError(
                f"{kv.name} keeps keys of its own in every head, and {correction.name} has to know what each key of a "
                f"layer is; give {kv.name} per_head=False"
            )


def check_reading(read: SparseReading | None, kv: Eviction | None, attention: Sequence[Correction]) -> None:
    """Raise `ValueError` for what leaves no two layers with the same keys, or reads all of them by itself."""
    if read is None or read.is_identity:
        return
    if kv is not None and not kv.is_identity:
        raise ValueError(
            f"read and {kv.name} exclude each other: layers that keep keys of their own cannot read what another "
            "chose; take kv to save memory, read to save time"
        )
    for correction in attention:
        if isinstance(correction, RowCorrection) and not correction.is_identity:
            raise ValueError(
                f"read and {correction.name} exclude each other: the correction computes the rows of generated tokens "
                "over all keys; leave out one"
            )


def check_decoding(policy: Any) -> None:
    """Raise `ValueError` for steps of decoding that contradict each other, or what the rest of a `Policy` does."""
    for first, second in combinations(policy.decoding, 2):
        if first.name == second.name:
            raise ValueError(f"{first.name} is given twice; give it once")
        if first.group and first.group == second.group:
            raise ValueError(f"{first.name} and {second.name} are both a kind of {first.group}; leave one out")
    contrasts = [step for step in policy.steps if isinstance(step, Contrast)]
    corrections: Sequence[Correction] = policy.corrections
    guided = [f"{c.name} (gamma={c.gamma})" for c in corrections if isinstance(c, Guided) and c.gamma != 1]
    for step in contrasts:
        if guided:
            raise ValueError(f"{step.name} and {guided[0]} are both a kind of contrast; give gamma=1, or leave one out")
        if isinstance(step, SeesPixels):
            check_second_pixels(step.name, policy)


def check_second_pixels(name: str, policy: Any) -> None:
    """Refuse what would choose anew in a stream that sees other pixels, so that two choices would be contrasted."""
    if policy.eviction is not None:
        raise ValueError(
            f"{name} and {policy.eviction.name} exclude each other: keys would leave the two streams by choices of "
            "their own; take text_contrast, or leave out kv"
        )
    for selector in policy.active:
        if selector.before_tower or selector.merges:
            what = "chooses by pixels, before the tower" if selector.before_tower else "writes merged tokens"
            raise ValueError(
                f"{name} and {selector.label} exclude each other: {selector.label} {what}, and the second stream can "
                "only drop the tokens that the first dropped; take text_contrast, or a selector that only drops"
            )

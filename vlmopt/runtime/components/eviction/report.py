"""What evictions left of the keys of a prompt, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...call import Call


@dataclass
class Kept:
    """What one layer kept of a prompt."""

    layer: int
    slots: tuple[int, int]  # before and after
    bytes: tuple[int, int]
    competing: list[int]  # per sample
    kept: list[int]  # per sample: of those that compete, in every head


class Evictions(list[Kept]):
    """State of a page."""


def evicted(call: Call) -> list[dict[str, Any]]:
    """Return one entry per layer that evicted keys.

    `slots_before` and `slots_after` are those of the longest sample, padding among them before; bytes are those of all
    beams. `competing` are the keys of each sample that nothing protected, over all turns; `kept` those of them that
    stay in every head.
    """
    return [
        {
            "layer": own.layer,
            "slots_before": own.slots[0],
            "slots_after": own.slots[1],
            "bytes_before": own.bytes[0],
            "bytes_after": own.bytes[1],
            "competing": own.competing[call.once],
            "kept": own.kept[call.once],
        }
        for own in sorted(call.page.slot(Evictions), key=lambda own: own.layer)
    ]


def lines(entries: list[dict[str, Any]]) -> list[str]:
    """Write the entries as one line of the report's table."""
    if not entries:
        return []

    def total(name: str) -> int:
        return sum(sum(entry[name]) if isinstance(entry[name], list) else entry[name] for entry in entries)

    before, after = (total(name) / 2**20 for name in ("bytes_before", "bytes_after"))
    return [
        f"applied  kv eviction in {len(entries)} layers: {total('kept')} of {total('competing')} competing keys stay; "
        f"{before:.2f} -> {after:.2f} MiB after the prompt"
    ]

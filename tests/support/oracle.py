"""One family, one cut, against the masked reference; where layers are recurrent, against the survivors alone."""

from __future__ import annotations

import copy
from typing import Any

import torch

import vlmopt
from tests.support.compact import compact_logits
from tests.support.families import GREEDY, LAYERS, Batch, Family, Image
from tests.support.mechanism import LOGITS, NEW_TOKENS, TOLERANCE, DropByOrdinal, forward, gap, generate, pattern
from tests.support.reference import Reference, Removal, Stage

RAGGED: list[list[Any]] = [[5, Image(0), 7], [3, Image(1), Image(2), 6], [9]]
CUTS = {"pre": (0, "147", "keep"), "pre-pospad": (0, "12367", "pospad"), "mid": (2, "147", "keep")}


def check(family: Family, rows: list[list[Any]], cut: str) -> None:
    """Logits and greedy tokens, cached and not, equal those of the reference."""
    layer, digits, positions = CUTS[cut]
    check_batch(family, family.inputs(rows), layer, digits, positions)


def check_batch(family: Family, batch: Batch, layer: int, digits: str, positions: str = "keep") -> None:
    """Check prompts that may end in an image: the last row of each stays."""
    dropped = batch.visual & pattern(batch.ordinal, batch.total[:, None], digits)
    dropped[:, -1] = False
    removal = Removal(batch.real, batch.span, [Stage(layer, dropped, positions)], LAYERS)
    method = DropByOrdinal(digits=digits, keep_ratio=1 - len(digits) / 10, layer=layer, positions=positions)
    with vlmopt.optimized(copy.deepcopy(family.build()), method) as model:
        logits, out = forward(model, batch), generate(model, batch)
        assert vlmopt.report(model).skipped == []
        again = generate(model, batch, use_cache=False) if family.hybrid else None
    kept = removal.kept()
    if again is not None:  # a mask cannot take a token from a recurrent layer
        for row in range(len(batch.ids)):
            expected = compact_logits(family.build(), batch(), removal, row)[0]
            assert gap(logits[row, kept[row]], expected) < TOLERANCE
        reference_out = again
    else:
        reference = Reference(family.build("eager")).remove(removal)
        assert gap(logits[kept], reference.forward(batch())[kept]) < TOLERANCE
        reference_out = reference.generate(batch(), max_new_tokens=NEW_TOKENS, **GREEDY, **LOGITS)
    assert torch.equal(out.sequences, reference_out.sequences)
    assert gap(torch.stack(out.logits, 1), torch.stack(reference_out.logits, 1)) < TOLERANCE

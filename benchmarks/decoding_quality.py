"""What contrasts of logits and a second look are worth, in one table beside their controls; from `hallucination.py`'s.

Of the degraded images of some blocks: POPE beside greedy decoding and beside a constant on yes that gives as many
answers of yes, captions beside greedy decoding. All differences are paired, by image.

    python benchmarks/hallucination.py --checkpoint tiny-qwen --decoding --block 3 --images 400 --polled 400 \
        --splits adversarial --rounds 1
    python benchmarks/decoding_quality.py --block 3         # keeps the summary, from which the docs' table is made
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from common import append
from hallucination_look import LOCAL, SECOND_LOOK
from hallucination_tables import CONSTANT, Block, fractions, methods, polled
from hallucination_task import cells, seed_of
from vlmopt.metrics import paired_difference, pope_fractions, ratio_interval

GROUP = "degraded"
ROWS = ("greedy", "plausibility", "text alone", "blank image", "VCD", "VCD, t 999", LOCAL, "DeCo", "DoLa", SECOND_LOOK)


def summary(blocks: Sequence[int]) -> list[dict[str, Any]]:
    """Return a row per checkpoint and method that was measured on all of these blocks."""
    seeds = [seed_of(block) for block in blocks]
    found = methods([cell for cell in cells() if cell["task"]["seed"] in seeds])
    return [
        {"checkpoint": checkpoint, "method": name, **row(rows[name], rows.get(CONSTANT + name))}
        for checkpoint, rows in found.items()
        for name in ROWS
        if len(rows.get(name, ())) == len(seeds)
    ]


def row(blocks: Sequence[Block], constant: Sequence[Block] | None) -> dict[str, Any]:
    """Return the figures of one method: shares, and differences as (value, low, high)."""
    mine, greedy = pope(blocks, "mine"), pope(blocks, "greedy")
    captions, before = fractions(blocks, GROUP, "mine"), fractions(blocks, GROUP, "greedy")
    same = None if constant is None else pope(constant, "mine")
    return {
        "images": len(captions["recall"][0]),
        "questions": int(sum(mine["accuracy"][1])),
        "accuracy": ratio_interval(*mine["accuracy"]).value,
        "yes": ratio_interval(*mine["yes_ratio"]).value,
        "than greedy": paired_difference(greedy["accuracy"], mine["accuracy"]),
        "than a constant": same and paired_difference(same["accuracy"], mine["accuracy"]),
        "chair_i": paired_difference(before["chair_i"], captions["chair_i"]),
        "recall": paired_difference(before["recall"], captions["recall"]),
        "words": ratio_interval(*captions["length"]).value,
    }


def pope(blocks: Sequence[Block], whose: str) -> dict[str, Any]:
    (split,) = blocks[0].job.polls
    return pope_fractions(*polled(blocks, GROUP, split, whose))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--block", type=int, nargs="+", default=[3], help="of seeds, pooled; asked about one split")
    options = parser.parse_args()
    append("decoding_quality", {"blocks": options.block, "rows": summary(options.block)})


if __name__ == "__main__":
    main()

"""MInference's block-sparse heads: keep the blocks whose mean keys answer best to the mean query of a tile."""

from __future__ import annotations

from dataclasses import dataclass

from vlmopt.core import setting

from ..sparse_attention.index import Launch
from .base import Pattern, blocks_to_index, register
from .blocks import block_grid, by_rank, pool_keys, pool_rows
from .prefill import Prefill


@register("minference_blocks")
@dataclass(frozen=True, kw_only=True)
class MInferenceBlocks(Pattern):
    """Keep a fixed number of key blocks per tile, by the product of mean query and mean key.

    MInference 1.0: Accelerating Pre-filling for Long-Context LLMs via Dynamic Sparse Attention (arXiv 2407.02490),
    block-sparse pattern. The sink block and the diagonal always stay, within the budget; the released code leaves them
    to the ranking, where a row may end up without any key.
    """

    reads = "mean queries and keys of blocks"

    blocks: int = setting(100, "Key blocks per tile of rows, the sink and the diagonal among them.", "int", min=1)

    def build(self, prefill: Prefill) -> list[Launch]:
        grid = block_grid(prefill, self.tile, self.run)
        scores = pool_rows(prefill, self.tile) @ pool_keys(prefill, self.run)[:, prefill.key_heads].mT
        keep = by_rank(scores, self.blocks, grid.visible, grid.forced)
        return [Launch(blocks_to_index(keep, self.tile, self.run, prefill))]

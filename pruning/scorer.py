"""FocusUI's scorer, its training target and its loss: which cells of a screenshot an instruction is about.

FocusUI: Efficient UI Grounding via Position-Preserving Visual Token Selection (arXiv 2601.03928).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, kl_div, log_softmax, normalize, scaled_dot_product_attention

from .similarity import POOLING, pooled

ROWS_AT_ONCE = 1024  # queries per attention call; bounds its memory where no fused kernel runs


class Enhancer(nn.Module):
    """W2 gelu(W1 LN(x + dropout(MHA(x, x, x)))), width D throughout, no residual around the MLP."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.dropout, self.norm = nn.Dropout(dropout), nn.LayerNorm(dim)
        self.up, self.down = nn.Linear(dim, dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Map [B, n, D] to [B, n, D]; mask Bool[B, n] is False on padding, which nothing attends to."""
        q, k, v = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, 2))
        seen = None if mask is None else mask[:, None, None]
        mixed = [scaled_dot_product_attention(rows, k, v, attn_mask=seen) for rows in q.split(ROWS_AT_ONCE, 2)]
        attended = self.out(torch.cat(mixed, 2).transpose(1, 2).flatten(2))
        enhanced: Tensor = self.down(gelu(self.up(self.norm(x + self.dropout(attended)))))
        return enhanced


class Scorer(nn.Module):
    """Cosines of enhanced cells and enhanced words of the instruction, pooled over the words.

    Each side attends within itself alone and knows no positions, so the scores follow a permutation of the cells and do
    not depend on the order of the words. About 12 D^2 parameters.

    Args:
        dim: D, width of the LLM's input embeddings. heads: of both attentions; divides `dim`. pooling: "mean" | "max".

    Raises:
        ValueError: `heads` does not divide `dim`, an unknown pooling, or a dropout outside 0..1.
    """

    def __init__(self, dim: int, heads: int = 8, pooling: str = "mean", dropout: float = 0.1) -> None:
        super().__init__()
        if dim < 1 or heads < 1 or dim % heads:
            raise ValueError(f"heads must divide dim, both >= 1, got heads={heads}, dim={dim}")
        if pooling not in POOLING:
            raise ValueError(f"pooling must be one of {', '.join(POOLING)}, got {pooling!r}")
        self.dim, self.heads, self.pooling = dim, heads, pooling
        self.visual, self.text = Enhancer(dim, heads, dropout), Enhancer(dim, heads, dropout)

    def forward(self, visual: Tensor, text: Tensor, text_mask: Tensor | None = None) -> Tensor:
        """Score the cells of one image, or of images with equally many cells.

        Args:
            visual: [M, D] or [B, M, D], visual tokens as the LLM is given them, any dtype.
            text: [n, D] or [B, n, D], input embeddings of the instruction, n >= 1.
            text_mask: Bool[B, n], False on padding; every row has a word.

        Returns:
            fp32 [M] or [B, M] within -1..1, higher = keep.
        """
        if visual.ndim == 2:
            visual, text = visual[None], text[None]
            return self.forward(visual, text, text_mask)[0]
        dtype = self.visual.out.weight.dtype
        cells = normalize(self.visual(visual.to(dtype)).tanh().float(), dim=2)
        words = normalize(self.text(text.to(dtype), text_mask).tanh().float(), dim=2)
        return pooled(cells, words, self.pooling, text_mask)


def kl_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """Return KL(softmax(labels) || softmax(scores)) over the cells, mean over images; 0 if they differ by a constant.

    Args:
        scores, labels: [M] or [B, M].
    """
    target, found = log_softmax(labels.float(), -1), log_softmax(scores.float(), -1)
    return kl_div(found, target, reduction="none", log_target=True).sum(-1).mean()


def box_overlap(boxes: Tensor, rows: int, columns: int) -> Tensor:
    """Return fp32 [rows * columns] in 0..1: the share of each cell inside a box, the largest where there are several.

    Args:
        boxes: [k, 4] (left, top, right, bottom) in fractions of the image's width and height; k may be 0.
    """
    scale = boxes.new_tensor([columns, rows, columns, rows])
    left, top, right, bottom = (boxes * scale).float().T[..., None]
    x, y = (torch.arange(n, device=boxes.device) for n in (columns, rows))
    across = (torch.minimum(right, x + 1) - torch.maximum(left, x)).clamp_min(0)
    down = (torch.minimum(bottom, y + 1) - torch.maximum(top, y)).clamp_min(0)
    shares = (down[:, :, None] * across[:, None]).flatten(1)
    return shares.amax(0) if len(shares) else shares.new_zeros(rows * columns)


def labels(boxes: Tensor, graph: Tensor, rows: int, columns: int, weight: float = 0.8) -> Tensor:
    """Return the target of a scorer's training, fp32 [rows * columns].

    It is weight * box overlap + (1 - weight) * UI-graph score.

    Args:
        boxes: as for `box_overlap`. graph: [rows * columns] of `ui_graph`. weight: 0..1.

    Raises:
        ValueError: a weight outside 0..1, or a graph of another size.
    """
    if not 0 <= weight <= 1 or graph.shape != (rows * columns,):
        raise ValueError(
            f"weight must be within 0..1 and graph [{rows * columns}], got {weight} and {list(graph.shape)}"
        )
    return weight * box_overlap(boxes, rows, columns).to(graph.device) + (1 - weight) * graph.float()

"""Draw equal scores by lot, for methods whose scores are often equal: by index a screen's lower end would lose."""

from __future__ import annotations

import torch
from torch import Tensor

from .tokens import Selection, VisualTokens


class Shuffled:
    """Mixin of a `ScoreSelector`: the highest scores stay; among equal ones the policy's seed decides.

    FocusUI (arXiv 2601.03928) draws by a hash of the prompt; here, as everywhere, the seed is the policy's. The lot is
    drawn over all visual tokens of the prompt, so a sample gets the same tokens alone and in a batch.
    """

    def take(self, tokens: VisualTokens, k: int, scores: Tensor) -> Selection:
        """Choose by given scores fp32 [n]."""
        generator = torch.Generator().manual_seed(tokens.seed)
        lot = torch.randperm(tokens.total, generator=generator).to(tokens.ordinal.device)[tokens.ordinal]
        shuffled = lot.argsort()
        best = scores[shuffled].sort(descending=True, stable=True).indices[:k]
        return Selection(shuffled[best].sort().values, scores)

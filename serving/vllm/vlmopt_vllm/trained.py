"""Worker: the trained marker that an engine's own policy names, read when the engine starts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vlmopt import scorers

from .policies import AtStart


class TrainedMarker:
    """A marker [d] and the words that its model knew; `ValueError` where it cannot be read or has none."""

    def __init__(self, source: str) -> None:
        self.source, self.scorer = source, scorers.load(source)
        if self.scorer.marker is None:
            raise ValueError(f"scorer {source!r} comes without a trained marker; use marker='mean' or 'last'")
        self.marker: Tensor = self.scorer.marker

    @classmethod
    def of(cls, engine: Any) -> TrainedMarker | None:
        """Read the one that an engine's policy names; None where it names none."""
        policy = AtStart.of(engine).policy
        return None if policy is None or policy.trained is None else cls(policy.trained)

    def check(self, model: Any) -> None:
        """Raise `ValueError` unless it belongs to a model of vLLM, whose weights are loaded."""
        text = model.config.get_text_config()
        ids = torch.arange(min(text.vocab_size, scorers.ROWS), device=next(model.parameters()).device)
        words = model.get_language_model().embed_input_ids(ids)  # whole on every rank
        facts = {"model_type": model.config.model_type, "hidden_size": text.hidden_size, "name_or_path": "this model"}
        self.scorer.check(self.source, {**facts, "fingerprint": scorers.fingerprint(words)}, marker=True)

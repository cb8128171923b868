"""Capture embeddings and hidden states, which every model has."""

from __future__ import annotations

from torch import Tensor

from vlmopt.pruning import HiddenStates, Scorer, TextEmbeds, VisualEmbeds, Weights

from ... import scorers
from ..capture import Capture
from ..place import Place, text_places


class VisualEmbedsCapture(Capture[VisualEmbeds]):
    """Capture `VisualEmbeds`."""

    def read(self, need: VisualEmbeds, at: Place) -> Tensor:
        places = at.context.visual[at.batch_row].nonzero()[:, 0] if need.whole else at.logical
        return at.step.embeds[at.batch_row, places.to(at.step.embeds.device)]


class TextEmbedsCapture(Capture[TextEmbeds]):
    """Capture `TextEmbeds`."""

    of_question = True

    def read(self, need: TextEmbeds, at: Place) -> Tensor:
        return at.step.embeds[at.batch_row, text_places(at).to(at.step.embeds.device)]


class HiddenStatesCapture(Capture[HiddenStates]):
    """Capture `HiddenStates`."""

    def read(self, need: HiddenStates, at: Place) -> Tensor:
        return at.hidden[at.batch_row, at.physical.to(at.hidden.device)]


class WeightsCapture(Capture[Weights]):
    """Capture `Weights`."""

    def read(self, need: Weights, at: Place) -> Scorer:
        """Return the scorer on the device of the embeddings, where the model was moved after it was optimized."""
        return at.session.slot(scorers.Trained).scorers[need.source].to(at.step.embeds.device)

"""What a selector may ask to read. The runtime captures each signal once and shares it among the methods."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from torch import Tensor, nn

from vlmopt.core import Signal as Signal  # the base of all of them

TEXT: Literal["text"] = "text"


@dataclass(frozen=True)
class TokenSignal(Signal):
    """A signal whose value is a tensor [n, ...] over the current visual tokens."""

    def subset(self, value: Tensor, index: Tensor) -> Tensor:
        return value[index]


@dataclass(frozen=True)
class AttentionRows(Signal):
    """Attention of prompt rows in decoder layer `layer`: the last `rows` real ones, or "text".

    Value: fp32 [h, R, n], softmax over ALL keys, then sliced to the sample's current visual tokens. rows="text" are the
    real rows after the sample's last visual token (the question), those of `TextEmbeds`.
    """

    layer: int
    rows: int | Literal["text"] = 1

    def subset(self, value: Tensor, index: Tensor) -> Tensor:
        return value[..., index]


@dataclass(frozen=True)
class LookAheadRows(AttentionRows):
    """As `AttentionRows`, but of the very layer whose input is about to be cut, computed before the cut."""


@dataclass(frozen=True)
class FirstPassRows(Signal):
    """Attention of prompt rows in a first pass over images whose sides are `shrink` times smaller, before the LLM.

    Value: fp32 [h, R, n], softmax over all keys of the shortened prompt. Every visual token has the value of the block
    of cells it lies in; structural tokens have 0. layer: whose rows; None for the layer with attention nearest to 2/5
    of the depth. rows: the last real ones, or "text" for those after the sample's last visual token.
    """

    layer: int | None = None
    rows: int | Literal["text"] = TEXT
    shrink: int = 2

    def subset(self, value: Tensor, index: Tensor) -> Tensor:
        return value[..., index]


@dataclass(frozen=True)
class VisualEmbeds(TokenSignal):
    """[n, d]: what the LLM was given for each current visual token (projector output), in the model's dtype.

    whole=True: [N, d], for every visual token of the prompt, also those that have left or lie in other segments.
    """

    whole: bool = False

    def subset(self, value: Tensor, index: Tensor) -> Tensor:
        return value if self.whole else value[index]


@dataclass(frozen=True)
class TextEmbeds(Signal):
    """[R, d]: input embeddings of the real text rows after the sample's last visual token (the question)."""


@dataclass(frozen=True)
class HiddenStates(TokenSignal):
    """[n, d]: hidden states of the current visual tokens at this boundary; at layer 0 the input embeddings."""


@dataclass(frozen=True)
class Sinks(TokenSignal):
    """Bool[n]: which current visual tokens are attention sinks at this boundary, inside the LLM.

    A token whose hidden state has |cosine| > 0.9 with that of the first token, while that one has massive activations
    (On the Existence and Behavior of Secondary Attention Sinks, arXiv 2512.22213). Where it has none, no token is.
    """


@dataclass(frozen=True)
class Activations(TokenSignal):
    """Gated feed-forward activations act(W_g x) * (W_u x) of decoder layer `layer`.

    of="visual": [n, m] of the current visual tokens; of="text": [R, m] of all real text rows of the prompt (of the last
    chunk, where it is prefilled in chunks), never of generated tokens.
    """

    layer: int
    of: Literal["visual", "text"] = "visual"

    def subset(self, value: Tensor, index: Tensor) -> Tensor:
        return value[index] if self.of == "visual" else value


@dataclass(frozen=True)
class Pixels(TokenSignal):
    """fp32 [n, c, v]: the v pixel values per channel under each current visual token, as the tower was given them.

    NaN for structural tokens. repeated=False: only the first of the temporal copies that some processors make of an
    image; of a video, the first of the frames that share a token.
    """

    repeated: bool = True


@dataclass(frozen=True)
class PixelScale(Signal):
    """fp32 [c]: the size of one unit of `Pixels` on the image's own scale 0..1, the processor's image_std."""


@dataclass(frozen=True)
class Weights(Signal):
    """A trained `torch.nn.Module` in eval mode, on the device of the embeddings, loaded from `source`."""

    source: str


@dataclass(frozen=True)
class Novelty(TokenSignal):
    """fp32 [n]: how far a token's pixels are from what predicts them, as judged before the vision tower.

    < 0 where a token was left out: the tower never saw it, and its features are those of the cell that stands for it.
    """


@dataclass(frozen=True)
class VisionAttention(TokenSignal):
    """fp32 [n]: attention that a token's patches receive in block `layer` of the vision tower, mean over heads.

    rows="cls": from the CLS row where the tower has a CLS token, else the mean over all rows, as with rows="all". It is
    the mean over the patches of a token; 0 for structural tokens. Negative layers count from the end.
    """

    layer: int = -2
    rows: Literal["cls", "all"] = "cls"


@dataclass(frozen=True)
class VisionKeys(TokenSignal):
    """fp32 [n, d_h]: keys of block `layer` of the vision tower, mean over heads and over the patches of a token."""

    layer: int = -2


@dataclass(frozen=True, eq=False)
class TwoLayers:
    """A projector of the form second(gelu(first(norm(x)))), for closed forms; weights as the module holds them.

    `norm` acts on each patch (`per_patch`) or on the concatenation; None without one. `gelu` is the module's own
    activation. `derived` holds what selectors computed from the weights; it is dropped when these change.
    """

    norm: nn.Module | None
    per_patch: bool
    first: nn.Linear
    gelu: nn.Module
    second: nn.Linear
    derived: dict[Any, Any] = field(default_factory=dict, init=False, repr=False)

    def derive(self, key: Any, make: Callable[[], Any]) -> Any:
        """Return what `make()` makes; call it once per key."""
        if key not in self.derived:
            self.derived[key] = make()
        return self.derived[key]


@dataclass(frozen=True, eq=False)
class ProjectorCall:
    """The projector, with what went in for each current visual token.

    inputs: [n, p, d_v], the p patches of each token before any norm of the projector (p = 1 for LLaVA, 4 for a 2x2
        merger); NaN rows for structural tokens. function: [k, p, d_v] -> [k, d], token by token, any dtype of the
        weights. layers: its parts where it is an MLP with one hidden layer, else None. differentiable: False where
        weights are quantised, whose kernels have no forward-mode derivatives.
    """

    inputs: Tensor
    function: Callable[[Tensor], Tensor]
    layers: TwoLayers | None
    differentiable: bool = True


@dataclass(frozen=True)
class Projector(Signal):
    """The module between vision tower and LLM and its inputs; value: `ProjectorCall`."""

    def subset(self, value: ProjectorCall, index: Tensor) -> ProjectorCall:
        return replace(value, inputs=value.inputs[index])

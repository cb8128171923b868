"""Run the sequence beside itself with other pixels: a forward of the model for each of its own, on a cache of its own.

The second stream goes through the same hooks in a call of its own, where corrections and sparse prefill act likewise.
Cuts are those of the first stream, wherever they lie: nothing is chosen twice.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache

from ...decoding import SeesPixels
from .. import compat
from ..arguments import MODALITIES
from ..call import CALL, STEP, Beside, Call, Generation, PromptStep, Session, Step
from ..component import Component
from ..ledger import Ledger
from ..second_pixels import changed
from .decoding import Told, contrast_of
from .marks import Marks
from .pruning.record import Choices, Following

ATTRIBUTE = "_vlmopt_second"


@dataclass(eq=False)
class Encoded:
    """State of a call: arguments of its feature functions by modality, and how often it saw other pixels."""

    bound: dict[str, dict[str, Any]] = field(default_factory=dict)
    changed: int = 0
    rows: int = 0  # that the newest pass of the second stream ran in its first layer, padding among them
    features: dict[str, Any] | None = None  # what they gave for other pixels, where `generate` encodes ahead


@dataclass(eq=False)
class Second:
    """State of a generation: the call in which its second stream runs."""

    call: Beside | None = None


class SecondStream(Component):
    """Go along with every forward of a `generate` whose sequence has shown an image."""

    def __init__(self, session: Session, method: SeesPixels) -> None:
        super().__init__(session)
        self.method = method

    @classmethod
    def of(cls, session: Session) -> SecondStream | None:
        method = contrast_of(session)
        return cls(session, method) if isinstance(method, SeesPixels) else None

    def change_pixels(self, call: Call, modality: str, bound: Mapping[str, Any]) -> dict[str, Any]:
        """Give the second stream its pixels; of the first, remember what it was given."""
        encoded = call.slot(Encoded)
        if isinstance(call, Generation):
            encoded.bound[modality] = dict(bound)
        if call.find(Following) is None:
            return {}
        encoded.changed += 1
        return changed(self.session, modality, bound, self.method)

    def open_step(self, step: Step, cache: Any) -> None:
        """Give the second stream its cache before the first image: up to there both are the same."""
        if not isinstance(step.call, Generation) or not isinstance(step, PromptStep):
            return
        step.call.put(Choices())
        marks = step.find(Marks)
        if cache is None or marks is None or not marks.has_image:
            return
        twin = getattr(cache, ATTRIBUTE, None) if step.past else None
        if twin is None:
            twin = copy.deepcopy(cache) if step.past else DynamicCache(config=self.session.structure.config)
        elif int(twin.get_seq_length()) > step.past:
            twin.crop(step.past)
        setattr(cache, ATTRIBUTE, twin)

    def behind_head(self, call: Generation, head: Callable[..., Any], given: Mapping[str, Any], out: Any) -> None:
        """Run the second stream over the rows that the first has just run over."""
        marks = call.find(Marks)
        if marks is None or not marks.has_image:
            return
        second = call.slot(Second)
        beside = second.call = second.call or Beside(self.session, Ledger(call.ledger.clock), call.request)
        beside.progress.mask = call.progress.mask
        beside.put(Following(call.slot(Choices)))
        batch, rows = next(iter(given[name].shape[:2] for name in ("input_ids", "inputs_embeds") if name in given))
        encoded = beside.slot(Encoded)
        encoded.rows = batch * rows
        running, open_step = CALL.set(beside), STEP.set(None)
        try:
            logits: Tensor = head(**self.arguments(call, beside, given)).logits[:, -1]
        finally:
            STEP.reset(open_step)
            CALL.reset(running)
        if call.progress.saw_image and not encoded.changed:
            raise ValueError(
                f"{type(self.session.model).__name__} was handed images that are encoded already, so its second stream "
                "cannot see others; use text_contrast"
            )
        if call.progress.prompt_done and beside.ledger.first_token is None:
            beside.ledger.close_prompt()
        call.slot(Told).ran(encoded.rows, logits.float(), getattr(compat.cache_in(given), ATTRIBUTE, None))

    def close_step(self, step: Step, cache: Any) -> None:
        """Note how many rows a cut before the first layer left to a pass of the second stream."""
        rows = step.rows.get(self.session.stages.of(0))
        if rows is not None and step.call.find(Following) is not None:
            step.call.slot(Encoded).rows = rows.log.numel()

    def arguments(self, call: Generation, beside: Beside, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments of the first stream's forward, with what is the second's own."""
        own, cache = dict(given), compat.cache_in(given)
        past = 0
        if cache is not None:
            twin = getattr(cache, ATTRIBUTE)
            past = int(twin.get_seq_length())
            own |= {name: twin for name in compat.CACHE_NAMES if given.get(name) is not None}
        ids, mask = given.get("input_ids"), given.get("attention_mask")
        if ids is not None and not (mask is None or (isinstance(mask, Tensor) and mask.ndim == 2)):
            own["attention_mask"] = flat_mask(call.prompt_mask, past + ids.shape[1], len(ids))
        if given.get(compat.ENCODED) and ids is not None:
            features = self.features(call, beside, len(ids))
            own[compat.ENCODED] = self.of_chunk(call, features, ids, past)
        return own

    def of_chunk(self, call: Generation, features: dict[str, Any], ids: Tensor, past: int) -> dict[str, Any]:
        """Return the features that lie in a chunk `ids` of the prompt, behind `past` rows of the cache."""
        prompt, began = call.request.ids, call.progress.began or 0
        if prompt is None or past + ids.shape[1] > prompt.shape[1]:  # without a cache, the text so far comes along
            return features
        left = prompt.repeat_interleave(len(ids) // len(prompt), 0)[:, began:]
        return compat.of_chunk(self.session.model, left, features, slice(past - began, past - began + ids.shape[1]))

    def features(self, call: Generation, beside: Beside, batch: int) -> dict[str, Any]:
        """Return what the feature functions give for the other pixels, for every row of the batch."""
        encoded = beside.slot(Encoded)
        if encoded.features is None:
            outer = self.session.structure.outer
            found = {m: getattr(outer, MODALITIES[m])(**bound) for m, bound in call.slot(Encoded).bound.items()}
            copies = 1 if call.request.ids is None else batch // len(call.request.ids)
            encoded.features = compat.for_copies(self.session.model, call.request.ids, found, copies)
        return dict(encoded.features)

    def close_call(self, call: Call) -> None:
        """Let go of the stream; its cache stays with that of the sequence."""
        for kind in (Second, Choices, Encoded):
            call.drop(kind)


def flat_mask(mask: Tensor | None, length: int, batch: int) -> Tensor | None:
    """Return the mask of padding [B, length] of a cache that grows, where that of the first stream is made for layers.

    Args:
        mask: Bool[b, L] of the prompt; what lies behind is real, and samples may have several rows.
    """
    if mask is None:
        return None
    grown = pad(mask.long(), (0, max(length - mask.shape[1], 0)), value=1)[:, :length]
    return grown.repeat_interleave(batch // len(grown), 0)

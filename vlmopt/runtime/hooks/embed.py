"""Before a decoder that is handed ids: it is given embeddings, as every other one, by the model's own code."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn

from ...families.base import Embed
from ..arguments import OuterArguments, by_name
from ..call import Call, Session


class EmbedAhead:
    """Forward pre-hook of the decoder, in front of the one that opens a step."""

    def __init__(self, session: Session, embed: Embed) -> None:
        self.session, self.embed = session, embed
        self.signature = inspect.signature(type(session.structure.decoder).forward)

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[()], dict[str, Any]]:
        given = by_name(self.signature, module, *args, **kwargs)
        given.pop("self")
        call, embeds = self.session.running_call(), given.get("inputs_embeds")
        if embeds is None:
            given |= {"inputs_embeds": self.embed(module, given), "input_ids": None}
        elif call is not None and call.progress.arguments is None and call.progress.began is None:
            call.progress.arguments = handed_on(call, embeds)
        return (), given


def handed_on(call: Call, embeds: Tensor) -> OuterArguments | None:
    """Return the ids of a prompt whose images are in `embeds` [B, L, d], which beams may have expanded."""
    request = call.request
    if request.ids is None or request.ids.shape[1] != embeds.shape[1]:
        return None
    times = len(embeds) // len(request.ids)
    given = {"input_ids": request.ids, "attention_mask": request.mask}
    expanded = {name: None if value is None else value.repeat_interleave(times, 0) for name, value in given.items()}
    return OuterArguments(expanded | {"image_hidden_states": embeds if request.images else None})

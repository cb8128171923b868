"""At the model with the head: labels come in, logits go out."""

from __future__ import annotations

import inspect
from contextvars import ContextVar
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import pad

from ..call import Session

TARGETS: ContextVar[Tensor | None] = ContextVar("vlmopt_targets", default=None)  # on the way to the model in the head
IGNORED = -100  # a label that no loss counts


class LabelsHook:
    """Forward pre-hook of the model with the head: only there are labels known."""

    def __init__(self, head: nn.Module) -> None:
        self.signature = inspect.signature(type(head).forward)

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = {**self.signature.bind_partial(module, *args).arguments, **kwargs} if args else kwargs
        TARGETS.set(targets_of(given.get("labels"), given.get("shift_labels")))


def targets_of(labels: Tensor | None, shifted: Tensor | None) -> Tensor | None:
    """Return Bool[B, L]: rows whose next token counts in the loss, from `labels` or `shift_labels` of a call."""
    if shifted is not None:
        return shifted != IGNORED
    return None if labels is None else pad(labels[:, 1:] != IGNORED, (0, 1))


class FirstToken:
    """Mark when the first logits of a call exist: the end of TTFT."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        call = self.session.running_call()
        if call is not None and call.by_generate and call.prompt_done and call.first_token is None:
            call.close_prompt()

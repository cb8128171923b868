"""No silent no-op: a call that brings an image must reach the hooks, or raise `RuntimeError`.

On a release of transformers that hands things over by other names or other ways, nothing would be found and the report
would say that there was nothing to do.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from .arguments import CARRIERS, MODALITIES, OuterArguments
from .call import Call, PromptStep, Session
from .compat import unknown


@dataclass
class Reached:
    """State of a step: what ran under our hooks."""

    parts: set[tuple[str, int]] = field(default_factory=set)  # ("layer" | "attention", layer)


def refuse_unseen(call: Call, arguments: OuterArguments, length: int, past: int) -> None:
    """Refuse a chunk of `length` rows behind `past` that found no visual token, though an image came with it."""
    session, ids, end = call.session, arguments.input_ids, call.request.length
    if arguments.embeds_only or length == 1 or (end is not None and past >= end):
        return  # the report says so; a generated token; candidates of assisted decoding
    encoded = bool(call.features.pieces) and not call.progress.saw_image  # a later stream may do without its images
    if not (arguments.pixels or encoded):
        return
    outer = type(session.structure.outer).__name__
    if ids is None:
        raise unknown(f"{outer} was handed an image, and neither input_ids nor inputs_embeds")
    if not has_visual(session, ids):
        return
    if ids.shape[1] != length:
        raise unknown(f"{outer} was handed {ids.shape[1]} input_ids, its decoder {length} embeddings")
    given = ", ".join(arguments.names)
    raise unknown(f"{outer} was handed an image under none of the names {', '.join(CARRIERS)}, only {given}")


def refuse_ungrouped(call: Call, arguments: OuterArguments) -> None:
    """Refuse visual tokens whose images were encoded in this call, but not where lengths and grids are read."""
    if (arguments.encodes or call.request.images) and not call.features.pieces:
        names = " or ".join(MODALITIES.values())
        raise unknown(f"{type(call.session.structure.outer).__name__} encoded an image without calling {names}")


def refuse_unencoded(step: PromptStep, what: str) -> None:
    """Refuse to go without what the vision encoder leaves for methods, where it encoded images in this call."""
    if step.call.features.pieces:
        raise unknown(f"{type(step.call.session.structure.outer).__name__} encoded an image, and {what}")


def refuse_undecoded(call: Call) -> None:
    """Refuse a bare forward whose images no pass of the decoder was handed."""
    arguments, structure = call.progress.arguments, call.session.structure
    if arguments is None or not arguments.pixels or arguments.input_ids is None:
        return
    if has_visual(call.session, arguments.input_ids):
        raise unknown(f"{type(structure.outer).__name__} ran around the hooks of {type(structure.decoder).__name__}")


def refuse_unreached(session: Session, ids: Tensor | None) -> None:
    """Refuse a forward whose images the outer model was never handed."""
    if ids is not None and has_visual(session, ids):
        head, outer = (type(part).__name__ for part in (session.structure.head, session.structure.outer))
        raise unknown(f"{head} ran around the hooks of {outer}")


def refuse_taken_off(session: Session) -> None:
    """Refuse a pass of the decoder where somebody, unhooking what is theirs, has taken our `forward` off its owner."""
    outer = session.structure.outer
    own = vars(outer).get("forward")
    if own is None or getattr(own, "__func__", None) is type(outer).forward:
        raise RuntimeError(
            f"forward of {type(outer).__name__} is not the one that vlmopt.optimize put there: something that was "
            "wrapped around it has been taken off, together with it. Call vlmopt.optimize(model, policy) again"
        )


def refuse_bypassed(step: PromptStep) -> None:
    """Refuse a pass over visual tokens that went around a layer or an attention function with work to do."""
    session = step.call.session
    planned = {("layer", layer) for layer in session.stages.cuts}
    attentions = enumerate(session.structure.attentions)
    planned |= {("attention", layer) for layer, module in attentions if hasattr(module, "_vlmopt_plan")}
    if missing := sorted(planned - step.slot(Reached).parts):
        what = ", ".join(f"{part} {layer}" for part, layer in missing)
        raise unknown(f"{type(session.structure.decoder).__name__} ran around the hooks of {what}")


def refuse_unread(call: Call) -> None:
    """Refuse a `generate` whose new part of the prompt holds images that no pass of the decoder was handed."""
    ids = call.request.ids
    if ids is None or call.progress.saw_image or "pruning" in call.ledger.skipped or not call.request.images:
        return
    if has_visual(call.session, ids[:, call.progress.began or 0 :]):
        raise unknown(f"generate of {type(call.session.model).__name__} never handed the image to the decoder")


def has_visual(session: Session, ids: Tensor) -> bool:
    return bool(torch.isin(ids, ids.new_tensor(list(session.structure.visual_ids))).any())


def no_visual(call: Call) -> str:
    """Return why there was nothing to do in a call that is over, for the report."""
    if began := call.progress.began:
        return f"the call went on from a cache of {began} tokens and brought no visual tokens of its own"
    return "the prompt brought no visual tokens"

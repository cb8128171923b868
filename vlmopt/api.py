"""The verbs: `optimize`, `restore`, `optimized`, `report`. Everything is checked before anything is changed."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from torch import nn

from vlmopt.core import hinting

from . import scorers
from .checks import check
from .policy import Policy, PolicyLike
from .policy.tuned import misfit
from .reporting import Report
from .runtime.session import install, remove, session_in, session_of
from .runtime.structure import answering, embeds_rows

Model = TypeVar("Model", bound=nn.Module)


@hinting
def optimize(model: Model, policy: PolicyLike) -> Model:
    """Change a loaded vision-language model in place so that `model.generate(**inputs)` applies `policy`.

    Logits and `last_hidden_state` keep the length of the prompt as it was given (rows of dropped tokens are zeros).
    What belongs to single layers has the length that layer saw, shorter behind a cut: `hidden_states`, `attentions`,
    and the layers of the cache; `report(model).key_lengths` says how long each was.

    The last real row of a prompt never leaves, nor a row whose next token is a label in `labels`: each counts inside
    the budget. In training mode without labels (label smoothing, a loss of your own), that goes for every row whose
    next token is text.

    Args:
        model: a transformers `...ForConditionalGeneration` with weights loaded, on any device; or a bare `AutoModel`,
            whose `forward` is then pruned: `last_hidden_state` has the length of the prompt, `report(model).rows()`
            says which of its rows belong to kept tokens. In Qwen's Omni models the thinker is changed, which
            reads images and writes text; of retrieval models (ColPali, ColQwen2) the `vlm`, and `embeddings` of
            dropped tokens are zeros.
        policy: preset name, path of a policy file or directory, a line such as "fastv:keep_ratio=0.1,layer=4", dict,
            method, list of methods, or `Policy`.

    Returns:
        The same object. A second call replaces the first; `restore(model)` undoes exactly. Copies and pickles of an
        optimized model are optimized. A wrapper such as PEFT's may be put around the model or taken off at any time.

    Raises:
        ValueError, TypeError: the policy is invalid or cannot work on this model. Nothing has been changed then.
    """
    answers = answering(model)
    structure, fitted = check(answers, Policy.load(policy))
    trained = scorers.required(fitted.active, answers)
    for caution in [c.caution for c in fitted.attention if c.caution is not None]:
        warnings.warn(caution, stacklevel=3)
    if (other := misfit(fitted.tuned, answers)) is not None:
        warnings.warn(other, stacklevel=3)
    if fitted.prune and getattr(model, "has_talker", False):
        warnings.warn(
            f"the talker of {type(model).__name__} reads the hidden states of every token, and fails behind dropped "
            "ones: generate with generation_mode='text'",
            stacklevel=3,
        )
    restore(model)
    install(fitted, structure, trained, model if embeds_rows(model) else None)
    return model


def restore(model: Model) -> Model:
    """Give back the model's own behaviour, bit for bit. Harmless on a model that is not optimized.

    `model` is what `optimize` was given, or any module around it or inside it that carries hooks.
    """
    session = session_of(model)
    if session is not None:
        remove(session)
    return model


@hinting
@contextmanager
def optimized(model: Model, policy: PolicyLike) -> Iterator[Model]:
    """Run `optimize` for the length of a `with` block; `restore` also runs after an exception.

    A policy that was installed before is installed again at the end.
    """
    before = session_of(model)
    optimize(model, policy)
    try:
        yield model
    finally:
        restore(model)
        if before is not None:
            optimize(model, before.policy)


def report(model: nn.Module) -> Report:
    """Return what the last `generate` (or bare forward) of an optimized model did and cost.

    Raises:
        ValueError: the model is not optimized, has not run yet, or its last call did not finish.
    """
    session = session_in(model)
    if session.last.call is None and session.last.began:
        raise ValueError(
            "nothing to report: the last call did not finish (it failed, was interrupted, or still runs); call "
            "model.generate(**inputs) or model(**inputs) again"
        )
    if session.last.call is None:
        raise ValueError("nothing to report yet: call model.generate(**inputs) or model(**inputs) first")
    return Report.of(session.last.call)

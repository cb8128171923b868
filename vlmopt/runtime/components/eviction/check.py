"""Which layers can do without some of their keys, and which calls; in words, why others cannot."""

from __future__ import annotations

from typing import Any

from ....kv import Eviction
from ... import cache_kinds
from ...call import Generation, Step
from ...hooks.attention import why_not as why_fixed
from ...structure import ModelStructure, is_window, shared_key_source
from ..marks import FOREIGN, Marks

WINDOW = "its cache is a window already"


def why_whole(structure: ModelStructure, layer: int) -> str | None:
    """Say why a layer keeps all of its keys, None if it need not."""
    if (reason := why_fixed(structure.attentions[layer])) is not None:
        return reason
    if hasattr(structure.attentions[layer], "kv_b_proj"):
        return "its cache holds one latent row a token, from which the keys of all heads are made"
    if is_window(structure, layer):
        return WINDOW
    source = shared_key_source(structure.attentions, layer)
    return None if source is None else f"it reads the keys of layer {source}"


def why_not(step: Step, cache: Any, method: Eviction) -> str | None:
    """Say why nothing is evicted after this prompt, None if something is.

    Raises:
        ValueError: a cache that cannot let go of keys.
    """
    if not isinstance(step.call, Generation) or step.call.request.length is None:
        return "only `generate` with input_ids says where the prompt ends; a bare forward keeps all keys"
    if cache is None:
        return "the call has no cache"
    if step.find(Marks) is None:
        return FOREIGN
    if cache_kinds.is_static(cache):
        raise ValueError(
            f"{method.label}: {type(cache).__name__} cannot shrink; use a dynamic cache, the default, or a policy "
            "without kv"
        )
    if method.per_head and step.arguments.attention_mask2d is None and "attention_mask" in step.arguments.names:
        return "the attention mask is no mask of padding: heads that keep different keys would need one each"
    return None

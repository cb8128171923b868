"""The other oracle: walk the decoder with the surviving rows only, for layers whose tokens a mask cannot remove."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.support.reference import Removal, decoder_of, marker_embedding


@torch.no_grad()
def compact_logits(model: Any, inputs: dict[str, Tensor], removal: Removal, row: int = 0) -> Tensor:
    """Logits [1, k, vocab] of the survivors of one row of a batch, by running each layer on the survivors alone."""
    decoder: Any = decoder_of(model)
    seen: list[dict[str, Any]] = []
    hooks = [
        layer.register_forward_pre_hook(
            lambda module, args, kwargs: seen.append({"hidden_states": args[0], **kwargs} if args else kwargs),
            with_kwargs=True,
        )
        for layer in decoder.layers
    ]
    model(**inputs, use_cache=False)
    for hook in hooks:
        hook.remove()
    here = inputs["attention_mask"][row].nonzero()[:, 0].tolist()
    hidden = seen[0]["hidden_states"][row : row + 1, here]
    for i, (layer, kw) in enumerate(zip(decoder.layers, seen, strict=True)):
        fresh = hidden.clone()
        for b, run in removal.runs.get(i, []):
            if b == row:
                local = [here.index(j) for j in run]
                fresh[0, local[-1]] = marker_embedding(hidden[0], local, removal.stages[i].marker)
        rows = removal.survivors[i]
        stay = here if rows is None else rows[row]
        hidden, here = fresh[:, [here.index(j) for j in stay]], stay
        tables = {
            name: tuple(_one_row(t, row)[..., here, :] for t in kw[name])
            for name in kw
            if name.startswith("position_embeddings")
        }
        out = layer(hidden, attention_mask=None, **tables)
        hidden = out[0] if isinstance(out, tuple) else out
    norm = decoder.norm if hasattr(decoder, "norm") else decoder.embedding_norm
    return model.lm_head(norm(hidden))


def _one_row(table: Tensor, row: int) -> Tensor:
    """table [..., B or 1, L, D] -> [..., 1, L, D]"""
    return table if table.shape[-3] == 1 else table[..., row : row + 1, :, :]

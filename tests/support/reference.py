"""The independent oracle of token removal. It knows nothing of the library under test.

`Reference` is the dense model with an attention written in plain torch: from a stage's layer on, no query may see the
columns of the tokens which that stage dropped, neither in the prompt nor while decoding. Everything keeps its full
length, so positions, masks and caches are the model's own. (`tests.support.compact` is the opposite.)
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import AttentionInterface

NAME = "masked_reference"
NEVER = -1e30


@dataclass(frozen=True)
class Stage:
    layer: int
    drop: Tensor  # Bool[B, L]: tokens to leave before this layer; those that left earlier may be repeated
    positions: str = "keep"
    marker: str = "mean"


class Removal:
    """Who is still there at each layer, worked out token by token.

    real: Bool[B, L], False on padding. span: Long[B, L], -1 on text. Rows and columns are those of the prompt.
    """

    def __init__(self, real: Tensor, span: Tensor, stages: Sequence[Stage], layers: int) -> None:
        self.shape, self.layers = tuple(real.shape), layers
        self.stages = {stage.layer: stage for stage in stages}
        self.survivors: list[list[list[int]] | None] = []  # per layer and row; None before the first stage
        self.runs: dict[int, list[tuple[int, list[int]]]] = {}  # per pospad layer: (row, run of dropped tokens)
        self.markers: list[list[tuple[int, int]]] = []  # per layer: (row, column) of every marker there is
        present = [[i for i in range(self.shape[1]) if real[b, i]] for b in range(self.shape[0])]
        markers: list[tuple[int, int]] = []
        for layer in range(layers):
            if layer in self.stages:
                stage, fresh = self.stages[layer], []
                for b, row in enumerate(present):
                    gone = {i for i in row if stage.drop[b, i] and (b, i) not in markers}
                    if stage.positions == "pospad":
                        runs = _runs(row, gone, span[b].tolist())
                        fresh += [(b, run) for run in runs]
                        gone -= {run[-1] for run in runs}
                    present[b] = [i for i in row if i not in gone]
                self.runs[layer] = fresh
                markers = markers + [(b, run[-1]) for b, run in fresh]
            started = any(k <= layer for k in self.stages)
            self.survivors.append([list(row) for row in present] if started else None)
            self.markers.append(markers)

    def kept(self, layer: int = -1) -> Tensor:
        """Bool[B, L]: tokens (markers included) that enter the layer."""
        out = torch.zeros(self.shape, dtype=torch.bool)
        for b, row in enumerate(self.survivors[layer] or []):
            out[b, row] = True
        return out

    @property
    def lengths(self) -> list[int]:
        """Keys that each layer stores for the prompt: the longest row, or the padded prompt before the first stage."""
        return [self.shape[1] if rows is None else max(map(len, rows)) for rows in self.survivors]

    def repacked(self, layer: int) -> Tensor | None:
        """Long[B, L] new positions at the layer, and those of later columns continue; None unless it is re-packed."""
        started = [k for k in self.stages if k <= layer]
        if not started or self.stages[max(started)].positions != "repack":
            return None
        out = torch.zeros(self.shape, dtype=torch.long)
        for b, row in enumerate(self.survivors[layer] or []):
            for rank, i in enumerate(row):
                out[b, i] = rank
        return out


def _runs(row: list[int], gone: set[int], span: list[int]) -> list[list[int]]:
    runs: list[list[int]] = []
    for before, i in zip([None, *row[:-1]], row, strict=True):
        if i not in gone:
            continue
        if before in gone and span[before] == span[i]:
            runs[-1].append(i)
        else:
            runs.append([i])
    return runs


def marker_embedding(hidden: Tensor, run: list[int], marker: str) -> Tensor:
    """hidden [L, d] of one row -> [d]"""
    if marker == "last":
        return hidden[run[-1]]
    return torch.stack([hidden[i].double() for i in run]).mean(0).to(hidden.dtype)


def _side_by_side(hidden: Tensor) -> tuple[Tensor, int]:
    """[B, L, d] as it is, streams [s, B, L, d] as [B, L, s * d]; and s, 0 where there are none."""
    return (hidden, 0) if hidden.ndim == 3 else (hidden.permute(1, 2, 0, 3).flatten(2), len(hidden))


def decoder_of(model: nn.Module) -> nn.Module:
    return next(
        m
        for m in model.modules()
        if isinstance(getattr(m, "layers", None), nn.ModuleList) and hasattr(m, "embed_tokens")
    )


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    assert kwargs.get("softcap") is None
    oracle, layer = module.masked_reference, module.layer_idx
    group, kv = query.shape[1] // key.shape[1], key.shape[2]
    key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    scores = (query @ key.transpose(-1, -2)).float() * scaling
    if attention_mask is not None:
        scores = scores + attention_mask[..., :kv]
    gone = oracle.forbidden(layer, query.shape[0], kv)
    if gone is not None:
        scores = scores + NEVER * gone[:, None, None, :].float()
    weights = oracle.weights(layer, oracle.logits(layer, scores).softmax(-1))
    out = (weights.to(value.dtype) @ value).transpose(1, 2).contiguous()
    return oracle.heads(layer, out), None


class Reference:
    """Masked copy of a model. `remove` sets what is dropped; `forward` and `generate` then run the dense copy."""

    def __init__(self, model: nn.Module) -> None:
        AttentionInterface.register(NAME, _attention)
        AttentionMaskInterface.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["eager"])
        self.model: Any = copy.deepcopy(model)
        self.decoder: Any = decoder_of(self.model)
        self.removal: Removal | None = None
        self.past = self.q = 0
        self.written: dict[tuple[int, int], Tensor] = {}  # (row, column) -> marker as the layer before left it
        attentions = [m for layer in self.decoder.layers for m in layer.children() if hasattr(m, "layer_idx")]
        configs = [self.model.config, self.model.config.get_text_config(), self.decoder.config]
        for config in configs + [m.config for m in attentions if hasattr(m, "config")]:
            config._attn_implementation_internal = NAME
        for m in attentions:
            m.masked_reference = self
        self.decoder.register_forward_pre_hook(self._enter, with_kwargs=True)
        for i, layer in enumerate(self.decoder.layers):
            layer.register_forward_pre_hook(self._before(i), with_kwargs=True)
            layer.register_forward_hook(self._after(i))

    def remove(self, removal: Removal | None) -> Reference:
        self.removal = removal
        return self

    @torch.no_grad()
    def forward(self, inputs: dict[str, Any]) -> Tensor:
        return self.model(**{"past_key_values": DynamicCache(), **inputs}).logits

    def generate(self, inputs: dict[str, Any], **kwargs: Any) -> Any:
        """A cache without config keeps everything, in sliding layers too, so that columns stay logical."""
        return self.model.generate(**{"past_key_values": DynamicCache(), **inputs, **kwargs})

    def logits(self, layer: int, scores: Tensor) -> Tensor:
        """Masked logits [B, H, q, kv] of a layer; for oracles that edit them."""
        return scores

    def weights(self, layer: int, weights: Tensor) -> Tensor:
        """Attention [B, H, q, kv] of a layer; for oracles that edit it."""
        return weights

    def heads(self, layer: int, out: Tensor) -> Tensor:
        """Head outputs [B, q, H, D] of a layer; for oracles that edit them."""
        return out

    def forbidden(self, layer: int, batch: int, columns: int) -> Tensor | None:
        """Bool[batch, columns]; beams and several returns repeat the rows of the prompt."""
        if self.removal is None or self.removal.survivors[layer] is None:
            return None
        gone = ~self.removal.kept(layer)
        out = torch.zeros(gone.shape[0], max(columns, gone.shape[1]), dtype=torch.bool)
        out[:, : gone.shape[1]] = gone
        return out[:, :columns].repeat_interleave(batch // gone.shape[0], 0)

    def _enter(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        cache = kwargs.get("cache", kwargs.get("past_key_values"))  # from 5.24; up to 5.23
        self.past = cache.get_seq_length() if cache is not None else 0
        embeds = kwargs.get("inputs_embeds")
        self.q = (kwargs["input_ids"] if embeds is None else embeds).shape[1]

    def _first(self, hidden: Tensor) -> int:
        """Column of the first of the rows at hand: some decoders keep only the last rows in their last layers."""
        return self.past + self.q - hidden.shape[1]

    def _markers(self, layer: int, hidden: Tensor) -> list[tuple[int, int]]:
        """(row, column) of the markers known at this layer, as far as `hidden` has them."""
        times, first = hidden.shape[0] // self.removal.shape[0], self._first(hidden)
        return [
            (b * times + t, i)
            for b, i in self.removal.markers[layer]
            for t in range(times)
            if first <= i < first + hidden.shape[1]
        ]

    def _before(self, layer: int) -> Any:
        names = list(inspect.signature(type(self.decoder.layers[layer]).forward).parameters)[1:]

        def hook(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
            if self.removal is None:
                return None
            kw = {**dict(zip(names, args, strict=False)), **kwargs}
            hidden, streams = _side_by_side(kw["hidden_states"])
            if layer > 0 and self.removal.markers[layer - 1]:  # what the loop adds between layers is not for markers
                hidden = hidden.clone()
                for row, column in self._markers(layer - 1, hidden):
                    hidden[row, column - self._first(hidden)] = self.written[row, column]
            kw["hidden_states"] = self._write_markers(layer, hidden)
            positions = self.removal.repacked(layer)
            if positions is not None:
                kw.update(self._rotary(layer, kw, positions))
            hidden = kw.pop("hidden_states")
            return (hidden.unflatten(2, (streams, -1)).permute(2, 0, 1, 3) if streams else hidden,), kw

        return hook

    def _after(self, layer: int) -> Any:
        def hook(module: nn.Module, args: Any, out: Any) -> None:
            if self.removal is not None and self.removal.markers[layer]:
                hidden, _ = _side_by_side(out[0] if isinstance(out, tuple) else out)
                self.written = {
                    (row, column): hidden[row, column - self._first(hidden)].clone()
                    for row, column in self._markers(layer, hidden)
                }

        return hook

    def _write_markers(self, layer: int, hidden: Tensor) -> Tensor:
        fresh, times = self.removal.runs.get(layer, []), hidden.shape[0] // self.removal.shape[0]
        before, hidden, first = hidden, hidden.clone(), self._first(hidden)
        for b, run in fresh:
            if run[-1] < first or run[0] >= first + hidden.shape[1]:
                continue
            for r in range(b * times, (b + 1) * times):
                local = [i - first for i in run]
                hidden[r, local[-1]] = marker_embedding(before[r], local, self.removal.stages[layer].marker)
        return hidden

    def _rotary(self, layer: int, kw: dict[str, Any], positions: Tensor) -> dict[str, Any]:
        hidden, rows = kw["hidden_states"], self.removal.survivors[layer] or []
        later = torch.tensor([len(row) for row in rows])[:, None] + torch.arange(self.past + self.q)
        table = torch.cat([positions, later], 1)[:, self._first(hidden) : self.past + self.q]
        table = table.repeat_interleave(hidden.shape[0] // table.shape[0], 0)
        out = {}
        for name in (n for n in kw if n.startswith("position_embeddings") and kw[n] is not None):
            rotary = self.decoder.rotary_emb_local if name.endswith("_local") else self.decoder.rotary_emb
            typed = "layer_type" in inspect.signature(type(rotary).forward).parameters
            extra = [self.decoder.config.layer_types[layer]] if typed else []
            out[name] = rotary(hidden, table, *extra)
        return out

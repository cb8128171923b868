"""Fit what a decoder layer is handed to the rows that reach it.

The decoder's loop gives every layer the same full-length tensors; they are gathered, never rebuilt.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor

from vlmopt.pruning import repack_positions

from . import cache_kinds, compat, masks
from .cache import Moved
from .call import PromptStep, Session, Step
from .context import Rows, Store
from .points import LayerInput
from .structure import shared_key_source


@dataclass
class Now:
    """State of a step: the stage of the layer that runs."""

    stage: int = 0


class Fitted(NamedTuple):
    """What a layer is run on."""

    rows: Rows | None  # None: all are here
    keys: int  # slots that it attends to


class Fitting:
    """Arguments of one decoder layer, as a stage runs it."""

    def __init__(self, session: Session, layer: int, stage: int) -> None:
        self.session, self.layer, self.stage = session, layer, stage
        structure = session.structure
        self.recurrent = bool(structure.layer_types) and structure.layer_types[layer] in compat.RECURRENT
        rotary = getattr(structure.decoder, "rotary_emb", None)
        by_type = rotary is not None and "layer_type" in inspect.signature(type(rotary).forward).parameters
        self.rotary_kind = (structure.layer_types[layer],) if by_type else ()
        self.key_source = shared_key_source(structure.attentions, layer)

    def fit(self, step: Step, at: LayerInput) -> Fitted:
        """Make arguments those of this stage's rows, in place; the step learns of it by `note`."""
        need = self.keys_needed(step, at)
        rows = step.rows.get(self.stage)
        if rows is None and step.state is None:
            return Fitted(None, need)
        width = step.q if rows is None else rows.log.shape[1]
        sliced = at.hidden.shape[1] != width  # the decoder's loop itself kept the last rows only
        if rows is not None and not sliced:
            self.gather_tables(step, rows, at.given)
        self.move_positions(step, rows, at)
        at.given["attention_mask"] = self.mask(step, rows, at, need, sliced)
        return Fitted(rows, need)

    def note(self, step: Step, fitted: Fitted, cache: Any) -> None:
        """Tell the step how many keys the layer attends to, and the cache how many rows of it the layer will drop."""
        step.key_length[self.layer] = fitted.keys
        if step.state is not None and cache is not None and fitted.rows is not None and self.key_source is None:
            step.state.pending[self.layer] = step.q - fitted.rows.log.shape[1]

    def keys_needed(self, step: Step, at: LayerInput) -> int:
        """Return the key slots this layer attends to; a KV-sharing layer sees those of its source."""
        if self.key_source is not None:
            return step.key_length[self.key_source]
        return cache_kinds.keys_returned(at.cache, self.layer, at.hidden.shape[1])

    def gather_tables(self, step: Step, rows: Rows, given: dict[str, Any]) -> None:
        """Gather rotary tables and per-layer inputs of the surviving rows, once per stage."""
        for name, value in given.items():
            if name.startswith("position_embeddings") and value is not None:
                given[name] = step.remember((name, self.stage), value, partial(take_tables, value, rows.log))
        if given.get("position_ids") is not None:
            given["position_ids"] = None  # only feeds packed-sequence detection, which takes gaps for boundaries
        if given.get("cache_position") is not None:
            given["cache_position"] = given["cache_position"][: rows.log.shape[1]]
        if given.get("per_layer_input") is not None:
            given["per_layer_input"] = masks.take_rows(given["per_layer_input"], rows.log)

    def move_positions(self, step: Step, rows: Rows | None, at: LayerInput) -> None:
        """Renumber under "repack": rotary tables of the survivors; later steps of the stage stay shifted alike."""
        hidden, given = at.hidden, at.given
        old = None if step.state is None else step.state.shift.get(self.stage)
        if not self.stage or not self.session.stages.repack or (rows is None and old is None):
            return
        moved = step.slot(Moved)
        if self.stage not in moved.positions:
            positions = step.positions.to(hidden.device).expand(step.batch, -1)
            positions = positions if old is None else positions + old[:, None]
            if rows is None:
                moved.positions[self.stage] = positions
            else:
                context = step.context if isinstance(step, PromptStep) else None
                real = None if context is None else context.attention_mask2d
                new, shift = repack_positions(positions, rows.log, rows.valid, real)
                moved.positions[self.stage] = new
                moved.shift[self.stage] = shift if old is None else shift + old
        positions = moved.positions[self.stage][:, -hidden.shape[1] :]  # the loop may have kept the last rows only
        for name in [n for n in given if n.startswith("position_embeddings") and given[n] is not None]:
            decoder = self.session.structure.decoder
            rotary = decoder.rotary_emb_local if name.endswith("_local") else decoder.rotary_emb  # gemma3 up to 4.57
            key = ("repack", name, self.stage, hidden.shape[1], *self.rotary_kind)
            given[name] = step.remember(key, None, partial(rotary, hidden, positions, *self.rotary_kind))

    def mask(self, step: Step, rows: Rows | None, at: LayerInput, need: int, sliced: bool) -> Tensor | None:
        """Return the mask of this layer from the logical one that it was handed."""
        mask: Tensor | None = at.given.get("attention_mask")
        if self.recurrent:
            return masks.recurrent_mask(mask, None if rows is None else rows.log, None if rows is None else rows.valid)
        source = self.layer if self.key_source is None else self.key_source
        store = step.store(self.stage if self.key_source is None else self.session.stages.of(source), source)
        key = ("mask", self.stage, store, need, sliced)
        shown = None if sliced else rows
        return step.remember(key, mask, lambda: self.make_mask(step, shown, mask, at.hidden.shape[1], need, store))

    def make_mask(
        self, step: Step, rows: Rows | None, mask: Tensor | None, height: int, need: int, store: Store
    ) -> Tensor | None:
        """Return the rows and columns of the logical mask that are here (the rules stand in `masks`).

        Args:
            rows: to take of the mask; None: all that it has. height: rows of the layer. need: keys of the layer.
        """
        columns, valid = step.columns(store)
        if columns is None:
            return mask if mask is None else mask[..., -need:]
        if mask is None and valid is None:
            return None  # causal from the first slot on, also where empty ones follow
        columns, valid = masks.slots_seen(columns, valid, need)
        if mask is None and valid is not None:
            if compat.is_flash(self.session.structure.config):
                return valid.long()
            logical = step.current(self.stage).log[:, -height:] + step.past
            return masks.ragged_mask(logical, columns, valid)
        mask = masks.plain(mask)
        if mask.ndim == 2:
            return masks.gather_2d(mask, columns, valid)
        keep_rows = rows.log if rows is not None and mask.shape[2] == step.q else None
        return masks.gather_4d(mask, keep_rows, columns, valid, step.past)


def take_tables(tables: Tensor | tuple[Tensor, ...], log: Tensor) -> Tensor | tuple[Tensor, ...]:
    """Return rows `log` of every table; Llama 4 has a single one of complex numbers."""
    if isinstance(tables, Tensor):
        return masks.take_rows(tables, log)
    return tuple(masks.take_rows(table, log) for table in tables)

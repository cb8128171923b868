"""At the boundary of every decoder layer: tokens leave here; later layers get what matches the survivors.

The decoder's loop hands every layer the same full-length tensors; they are gathered, never rebuilt.
"""

from __future__ import annotations

import copy
import inspect
import warnings
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vlmopt.pruning import TEXT, LookAheadRows, Selector, pack, repack_positions

from .. import compat, masks
from ..cache import Moved, adopt
from ..call import Session, Step
from ..captures.activations import Taken
from ..captures.lookahead import Ahead, look_ahead
from ..components.selection import Overwritten, choose, write_markers, write_merged
from ..context import Rows
from ..structure import shared_key_source
from ..unseen import Reached
from .last_rows import longest_question


def take_tables(tables: tuple[Tensor, ...], log: Tensor) -> tuple[Tensor, ...]:
    return tuple(masks.take_rows(table, log) for table in tables)


@dataclass(frozen=True)
class CutHere:
    """One selector that acts before a layer, and the stage that it starts."""

    selector: Selector
    stage: int
    ahead: list[LookAheadRows]
    before: LayerHook  # this layer as the stage before the cut would run it
    joins: bool  # the next cut at this boundary drops what this one does, so that its markers stand for both


class LayerHook:
    """Forward pre-hook of one decoder layer."""

    def __init__(self, session: Session, layer: int) -> None:
        self.session, self.layer = session, layer
        structure = session.structure
        self.stage = session.stage_of[layer]
        self.repack = any(method.numbering == "repack" for method in session.selectors)
        self.names = list(inspect.signature(type(structure.layers[layer]).forward).parameters)[1:]
        self.required = compat.layer_arguments(structure.decoder)
        self.recurrent = bool(structure.layer_types) and structure.layer_types[layer] in compat.RECURRENT
        rotary = getattr(structure.decoder, "rotary_emb", None)
        by_type = rotary is not None and "layer_type" in inspect.signature(type(rotary).forward).parameters
        self.rotary_kind = (structure.layer_types[layer],) if by_type else ()
        self.key_source = shared_key_source(structure.attentions, layer)
        self.cuts: list[CutHere] = []
        for stage, selector in enumerate(session.selectors, 1):
            if selector.layer == layer:
                ahead = [need for need in selector.captures if isinstance(need, LookAheadRows)]
                before = copy.copy(self)
                before.stage, before.cuts = stage - 1, []
                following = session.selectors[stage : stage + 1]
                joins = any(other.layer == layer and other.numbering == "pospad" for other in following)
                self.cuts.append(CutHere(selector, stage, ahead, before, joins))

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        step = self.session.running_step()
        if step is None or step.fast:
            return None
        step.stage = self.stage
        if step.context is None and step.state is None:
            return None
        given = dict(zip(self.names, args, strict=False)) | kwargs  # some families pass positionally
        compat.require(self.required, given, f"decoder layer {self.layer}")
        step.slot(Reached).parts.add(("layer", self.layer))
        hidden = given.pop("hidden_states")
        cache = compat.cache_in(given)
        for here in self.cuts:
            if step.context is not None:
                if here.ahead:
                    self.look(step, here, module, hidden, given, cache)
                hidden = self.cut(step, here, hidden, cache)
        rows = self.prepare(step, hidden, given, cache)
        if rows is None and step.state is None:
            return None
        if step.state is not None and cache is not None and rows is not None and self.key_source is None:
            step.state.pending[self.layer] = step.q - rows.log.shape[1]
        return (hidden,), given

    def prepare(self, step: Step, hidden: Tensor, given: dict[str, Any], cache: Any) -> Rows | None:
        """Make the layer's arguments those of this stage's rows, in place."""
        need = self.keys_needed(step, hidden, cache)
        rows = step.rows.get(self.stage)
        if rows is None and step.state is None:
            return None
        width = step.q if rows is None else rows.log.shape[1]
        sliced = hidden.shape[1] != width  # the decoder's loop itself kept the last rows only
        if rows is not None and not sliced:
            self.gather_tables(step, rows, given)
        self.move_positions(step, rows, hidden, given)
        given["attention_mask"] = self.mask(step, rows, hidden, need, sliced, given.get("attention_mask"))
        return rows

    def look(
        self, step: Step, here: CutHere, module: nn.Module, hidden: Tensor, given: dict[str, Any], cache: Any
    ) -> None:
        """Rows of this very layer before its input is cut."""
        start, step.stage = step.call.clock.now(), here.stage - 1
        given = dict(given)
        here.before.prepare(step, hidden, given, cache)
        count = max(longest_question(step) if need.rows == TEXT else int(need.rows) for need in here.ahead)
        step.slot(Ahead)[here.ahead[0].layer] = look_ahead(step, module, self.layer, count, hidden, given)
        step.stage = self.stage
        step.call.page.scoring.append((start, step.call.clock.now()))

    def cut(self, step: Step, here: CutHere, hidden: Tensor, cache: Any) -> Tensor:
        """Run one selector of this boundary and gather the rows that stay."""
        assert step.context is not None
        if reason := compat.why_fixed(cache):
            step.call.skip("pruning", reason)
            warnings.warn(reason, stacklevel=2)
            step.context = None
            return hidden
        previous = step.rows.get(here.stage - 1)
        before = step.current(here.stage - 1)
        start = step.call.clock.now()
        keep = choose(self.session, step, here.selector, before, hidden)
        step.slot(Taken).clear()
        overwritten = step.slot(Overwritten)
        overwritten.left = None
        if keep is None or here.joins:  # nothing to drop, or not yet: the rows of the stage before go on
            if keep is not None:
                overwritten.left = torch.zeros_like(step.context.visual).scatter(1, before.log, keep.dropped)
            step.call.page.scoring.append((start, step.call.clock.now()))
            if previous is not None:
                step.rows[here.stage] = previous
            return hidden
        content = keep.content
        if before.valid is not None:
            content = content & before.valid
        if step.context.attention_mask2d is not None:
            content = content & step.context.attention_mask2d.gather(1, before.log)
        if step.context.read is not None:
            content = content | step.context.read.gather(1, before.log)
        if keep.written:
            hidden = write_merged(step, hidden, keep, before)
        if here.selector.numbering == "pospad":
            hidden, ends = write_markers(self.session, step, hidden, keep, here.selector, before)
            content = content | ends
        index, valid = pack(content)
        step.rows[here.stage] = Rows(before.log.gather(1, index), valid)
        if cache is not None and step.state is None:
            step.state = adopt(cache, self.session.lease)
        hidden = masks.take_rows(hidden, index)
        step.call.page.scoring.append((start, step.call.clock.now()))
        return hidden

    def keys_needed(self, step: Step, hidden: Tensor, cache: Any) -> int:
        """Physical keys this layer attends to; a KV-sharing layer sees those of its source."""
        if self.key_source is not None:
            need = step.key_length[self.key_source]
        else:
            need = compat.physical_past(cache, self.layer) + hidden.shape[1]
        step.key_length[self.layer] = need
        return need

    def gather_tables(self, step: Step, rows: Rows, given: dict[str, Any]) -> None:
        """Rotary tables and per-layer inputs of the surviving rows, once per stage."""
        for name, value in given.items():
            if name.startswith("position_embeddings") and value is not None:
                given[name] = step.remember((name, self.stage), value, partial(take_tables, value, rows.log))
        if given.get("position_ids") is not None:
            given["position_ids"] = None  # only feeds packed-sequence detection, which takes gaps for boundaries
        if given.get("cache_position") is not None:
            given["cache_position"] = given["cache_position"][: rows.log.shape[1]]
        if given.get("per_layer_input") is not None:
            given["per_layer_input"] = masks.take_rows(given["per_layer_input"], rows.log)

    def move_positions(self, step: Step, rows: Rows | None, hidden: Tensor, given: dict[str, Any]) -> None:
        """Policy "repack": rotary tables of the re-numbered survivors; later steps of the stage stay shifted alike."""
        old = None if step.state is None else step.state.shift.get(self.stage)
        if not self.stage or not self.repack or (rows is None and old is None):
            return
        moved = step.slot(Moved)
        if self.stage not in moved.positions:
            positions = step.positions.to(hidden.device).expand(step.batch, -1)
            positions = positions if old is None else positions + old[:, None]
            if rows is None:
                moved.positions[self.stage] = positions
            else:
                real = None if step.context is None else step.context.attention_mask2d
                new, shift = repack_positions(positions, rows.log, rows.valid, real)
                moved.positions[self.stage] = new
                moved.shift[self.stage] = shift if old is None else shift + old
        positions = moved.positions[self.stage][:, -hidden.shape[1] :]  # the loop may have kept the last rows only
        for name in [n for n in given if n.startswith("position_embeddings") and given[n] is not None]:
            decoder = self.session.structure.decoder
            rotary = decoder.rotary_emb_local if name.endswith("_local") else decoder.rotary_emb  # gemma3 up to 4.57
            key = ("repack", name, self.stage, hidden.shape[1], *self.rotary_kind)
            given[name] = step.remember(key, None, partial(rotary, hidden, positions, *self.rotary_kind))

    def mask(
        self, step: Step, rows: Rows | None, hidden: Tensor, need: int, sliced: bool, mask: Tensor | None
    ) -> Tensor | None:
        """The mask of this layer from the logical one (the rules stand in `masks`)."""
        if self.recurrent:
            return masks.recurrent_mask(mask, None if rows is None else rows.log, None if rows is None else rows.valid)
        source = self.layer if self.key_source is None else self.key_source
        store = step.store(self.session.stage_of[source] if self.key_source is not None else self.stage, source)
        columns, valid = step.columns(store)
        key = ("mask", self.stage, store, need, sliced)
        return step.remember(key, mask, lambda: self.make_mask(step, rows, hidden, need, sliced, mask, columns, valid))

    def make_mask(
        self,
        step: Step,
        rows: Rows | None,
        hidden: Tensor,
        need: int,
        sliced: bool,
        mask: Tensor | None,
        columns: Tensor | None,
        valid: Tensor | None,
    ) -> Tensor | None:
        if columns is None:
            return mask if mask is None else mask[..., -need:]
        columns, valid = columns[:, -need:], None if valid is None else valid[:, -need:]
        if mask is None:
            if valid is None:
                return None
            if compat.is_flash(self.session.structure.config):
                return valid.long()
            logical = step.current(self.stage).log[:, -hidden.shape[1] :] + step.past
            return masks.ragged_mask(logical, columns, valid)
        if not isinstance(mask, Tensor):
            raise ValueError(
                f"attention masks of type {type(mask).__name__} cannot be cut; use attn_implementation='sdpa'"
            )
        if mask.ndim == 2:
            return masks.gather_2d(mask, columns, valid)
        keep_rows = rows.log if rows is not None and not sliced and mask.shape[2] == step.q else None
        return masks.gather_4d(mask, keep_rows, columns, valid, step.past)

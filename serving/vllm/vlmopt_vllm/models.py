"""Worker: the served model classes, made of vLLM's own when their name is asked for.

`embed_multimodal` gives every item as many rows as it has placeholders. M-RoPE families send the cells of the rows
along behind them; the runner hands both back before the LLM runs, chunk by chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from vllm.multimodal import MULTIMODAL_REGISTRY

from vlmopt.pruning import Signal

from .batches import batches, joined, split
from .behind import Behind
from .choice import choice, finished
from .factories import factories_of
from .families import ARCHITECTURES, described, part
from .items import Item
from .plans import FIELDS, Plan, frames_of
from .policies import KEY
from .positions import COLUMNS, lay_out, packed, placed, unpacked
from .signals import Heard, Listener
from .tower import on_cells
from .trained import TrainedMarker


def __getattr__(name: str) -> type:
    if name not in ARCHITECTURES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, base = ARCHITECTURES[name]
    base_class = getattr(import_module(f"vllm.model_executor.models.{module}"), base)
    made = type(name, (Pruned, base_class), {"__module__": __name__})
    served: type = MULTIMODAL_REGISTRY.register_processor(**factories_of(base_class))(made)
    globals()[name] = served
    return served


class Pruned(Behind):
    """Mix-in before a model class of vLLM; without the key, every method is the base's."""

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        mm = vllm_config.model_config.multimodal_config
        self_on = KEY in (mm.mm_processor_kwargs or {})
        mrope = self_on and vllm_config.model_config.uses_mrope
        if self_on:
            refuse(vllm_config, mrope)
        if mrope:
            # The model sizes its rotary table by it (positions of a pruned prompt go beyond the number of its tokens),
            # and the runner hands embeddings to `recompute_mrope_positions` only then. EVS itself stays off.
            object.__setattr__(mm, "is_multimodal_pruning_enabled", lambda: True)
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        if mrope:
            self.supports_multimodal_pruning = True  # what the runner asks, too
        self.vlmopt_on, self.vlmopt_mrope = self_on, mrope
        self.vlmopt_room = vllm_config.scheduler_config.max_num_encoder_input_tokens
        self.vlmopt_listener: Listener | None = None
        self.vlmopt_trained = TrainedMarker.of(mm.mm_processor_kwargs[KEY]) if self_on else None

    def load_weights(self, *args: Any, **kwargs: Any) -> Any:
        loaded = super().load_weights(*args, **kwargs)
        if self.vlmopt_trained is not None:
            self.vlmopt_trained.check(self)
        return loaded

    def get_encoder_cudagraph_config(self) -> Any:
        config = super().get_encoder_cudagraph_config()
        if self.vlmopt_on:
            config.modalities = []  # graphs run around `embed_multimodal`
        return config

    def _postprocess_image_embeds_evs(self, rows: Any, inputs: Any) -> Any:
        return rows if self.vlmopt_on else super()._postprocess_image_embeds_evs(rows, inputs)

    def _postprocess_video_embeds_evs(self, rows: Any, inputs: Any) -> Any:
        return rows if self.vlmopt_on else super()._postprocess_video_embeds_evs(rows, inputs)

    def embed_multimodal(self, **kwargs: Any) -> Any:
        if not self.vlmopt_on or not any(name.startswith(f"{KEY}_") for name in kwargs):
            return super().embed_multimodal(**kwargs)
        sent = {name: kwargs.pop(f"{KEY}_{name}") for name in FIELDS}
        plans = [Plan.of(dict(zip(FIELDS, of_item, strict=True))) for of_item in zip(*sent.values(), strict=True)]
        modality = "video" if any("video" in name for name in kwargs) else "image"
        items = split(kwargs, plans)
        rows: list[Tensor] = []
        for batch in batches(plans, self.vlmopt_room):
            part_of = joined([items[i] for i in batch], kwargs, plans[0].flat) if len(batch) < len(plans) else kwargs
            rows += self.vlmopt_encoded(modality, [plans[i] for i in batch], [items[i] for i in batch], part_of)
        return rows

    def vlmopt_encoded(
        self, modality: str, plans: list[Plan], items: list[dict[str, Any]], kwargs: Any
    ) -> list[Tensor]:
        """Encode items together, of which the first may have signals to be heard, and give the rows that stay."""
        needs = plans[0].listens
        hearing = self.vlmopt_hearing(needs) if needs else nullcontext()
        whole = [plan.anchor if len(plan.anchor) else torch.arange(plan.item_total) for plan in plans]
        cut = any(len(plan.anchor) for plan in plans)
        tower = part(self, described(self.config).vision_tower)
        with hearing as heard, on_cells(tower, whole) if cut else nullcontext():
            encoded = list(super().embed_multimodal(**kwargs))
        trained = None if self.vlmopt_trained is None else self.vlmopt_trained.marker
        out, width = [], self.config.get_text_config().hidden_size  # DeepStack's levels lie behind, column by column
        for plan, fields, rows in zip(plans, items, encoded, strict=True):
            keep = plan.keep.to(rows.device)
            if not len(keep) and plan.policy is not None:
                item = Item(described(self.config), self.config, modality, plan.item_total, fields)
                keep, rows = choice(plan, plan.policy, item, rows, width, heard)
            index, rows = finished(plan, rows, keep, width, trained)
            if self.vlmopt_mrope:
                rows = torch.cat([rows, packed(plan.cells[index.cpu()]).to(rows)], 1)
            out.append(rows)
        return out

    def vlmopt_hearing(self, needs: Sequence[Signal]) -> AbstractContextManager[Heard]:
        if self.vlmopt_listener is None:
            self.vlmopt_listener = Listener(self, described(self.config), self.config)
        return self.vlmopt_listener.hearing(needs)

    def get_mrope_input_positions(self, input_tokens: list[int], mm_features: Any) -> tuple[Tensor, int]:
        if not self.vlmopt_mrope:
            laid_out: tuple[Tensor, int] = super().get_mrope_input_positions(input_tokens, mm_features)
            return laid_out
        spans = []
        for feature in mm_features:
            plan = Plan.of({name: feature.data[f"{KEY}_{name}"].data for name in FIELDS})
            spans += frames_of(plan, feature.mm_position.offset)
        return lay_out(len(input_tokens), spans)

    def recompute_mrope_positions(
        self, input_ids: Any, multimodal_embeddings: Sequence[Tensor], mrope_positions: Tensor, num_computed_tokens: int
    ) -> tuple[list[Tensor], Tensor, int]:
        """Take the cells off the rows of a chunk, and put the rows where their cells are."""
        if not self.vlmopt_mrope:  # vLLM prunes videos itself
            placed_by_vllm: tuple[list[Tensor], Tensor, int] = super().recompute_mrope_positions(
                input_ids, multimodal_embeddings, mrope_positions, num_computed_tokens
            )
            return placed_by_vllm
        rows = [embeds[:, :-COLUMNS] for embeds in multimodal_embeddings]
        if rows:
            ids = torch.as_tensor(input_ids, device=mrope_positions.device)
            visual = (ids == self.config.image_token_id) | (ids == self.config.video_token_id)
            cells = unpacked(torch.cat([embeds[:, -COLUMNS:] for embeds in multimodal_embeddings])).to(visual.device)
            mrope_positions = placed(mrope_positions, visual, cells, num_computed_tokens)
        # A prompt ends in text, whose position no choice moves.
        return rows, mrope_positions, int(mrope_positions[0, -1]) + 1 - mrope_positions.shape[1]


def refuse(vllm_config: Any, mrope: bool) -> None:
    """Raise `ValueError` where an engine's options do not go together with pruning."""
    mm, lora = vllm_config.model_config.multimodal_config, vllm_config.lora_config
    if mm.get_video_pruning_spec() is not None:
        raise ValueError(f"{KEY} and --video-pruning-rate cannot be used together: leave one out")
    if mrope and vllm_config.parallel_config.pipeline_parallel_size > 1:
        raise ValueError(
            f"{KEY}: with pipeline parallelism only the first rank learns the positions of the rows that stay; use "
            "--tensor-parallel-size"
        )
    if vllm_config.compilation_config.compile_mm_encoder:
        raise ValueError(
            f"{KEY} listens to the tower, which a compiled one does not allow; leave compile_mm_encoder out"
        )
    if lora is not None and getattr(lora, "enable_tower_connector_lora", False):
        raise ValueError(
            f"{KEY}: vLLM derives a tower's tokens from the placeholders, of which pruning leaves fewer; leave "
            "--enable-tower-connector-lora out"
        )

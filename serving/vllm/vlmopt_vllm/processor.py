"""Front end: fewer placeholders per item, the choice itself where grid or pixels decide, hashes that know the policy.

All that a client can get wrong is refused here, where an exception is an answer with status 400. In the worker it would
end the engine for everybody.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from vllm.multimodal.inputs import MultiModalBatchedField, MultiModalFieldElem, MultiModalFlatField
from vllm.multimodal.processing.processor import PromptUpdateDetails

from . import markers
from .behind import Behind
from .families import POOLED, described
from .items import PIXELS, Item
from .plans import beyond, dense, planned, smaller, spans_of
from .policies import KEY, OF_TOWER, AtStart, Served, canonical, check_family, without_key
from .signals import check_signal

MODALITIES = ("image", "video")


class Shortened(Behind):
    """Mix-in before a family's multi-modal processor, for engines that were started with the key.

    `apply` reads what a request asks for, once; behind it the value of the key is `Served`, or None: dense.
    """

    vlmopt_at_start: AtStart

    def _apply_hf_processor_main(self, mm_items: Any, hf_kwargs: Mapping[str, object]) -> Any:
        return super()._apply_hf_processor_main(mm_items, without_key(hf_kwargs))

    def _get_mm_fields_config(self, hf_inputs: Any, kwargs: Mapping[str, object]) -> Any:
        return super()._get_mm_fields_config(hf_inputs, without_key(kwargs))

    def _get_mm_hashes(self, inputs: Any) -> dict[str, list[str]]:
        """Mark hashes with the policy, also where a client names its items: caches of every kind go by these.

        Whole items are marked, too: their rows carry positions, so no engine without the key may take them for its own.
        """
        settings = inputs.hf_processor_mm_kwargs
        policy: Any = settings[KEY]
        text = canonical(None, paths=False) if policy is None else policy.text
        mark = hashlib.sha256(text.encode()).hexdigest()[:16]
        hashes: dict[str, list[str]] = super()._get_mm_hashes(
            replace(inputs, hf_processor_mm_kwargs=without_key(settings))
        )
        return {
            m: [f"{item}-{KEY}-{mark}" for item in items] if m in MODALITIES else items for m, items in hashes.items()
        }

    def _get_mm_prompt_updates(self, mm_items: Any, kwargs: Mapping[str, object], out_mm_kwargs: Any) -> Any:
        """Plan every item, send the plan along with its fields, and take placeholders out."""
        updates = super()._get_mm_prompt_updates(mm_items, without_key(kwargs), out_mm_kwargs)
        policy: Any = kwargs[KEY]
        return {
            modality: [
                [self.vlmopt_shortened(policy, modality, update, fields, kwargs) for update in found]
                if modality in MODALITIES
                else found
                for found, fields in zip(of_items, out_mm_kwargs.get(modality, ()), strict=True)
            ]
            for modality, of_items in updates.items()
        }

    def apply(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        settings = inputs.hf_processor_mm_kwargs or {}
        policy = self.vlmopt_policy(settings)  # first: a bad policy is to be named, not its consequences
        inputs = replace(inputs, hf_processor_mm_kwargs={**settings, KEY: policy})
        try:
            return super().apply(inputs, *args, **kwargs)
        except Exception as error:
            self.vlmopt_forget(inputs)
            if isinstance(error, ValueError):
                raise
            raise ValueError(f"{KEY}: images or videos cannot be processed as this request asks: {error}") from error

    def vlmopt_forget(self, inputs: Any) -> None:
        """Take the items of a refused request out of the front end's cache, which believes that the engine has them."""
        if inputs.cache is not None:
            for hashes in self._get_mm_hashes(inputs).values():
                for item in hashes:
                    inputs.cache.invalidate(item)

    def _maybe_apply_prompt_updates(self, mm_items: Any, mm_res: Any) -> Any:
        """Apply updates; where positions follow images, refuse prompts whose positions cannot be told or held."""
        ids, placeholders = super()._maybe_apply_prompt_updates(mm_items, mm_res)
        if self.info.ctx.model_config.uses_mrope:
            self.vlmopt_check_positions(ids, placeholders, mm_res.prompt_updates)
        return ids, placeholders

    def vlmopt_policy(self, request: Mapping[str, object]) -> Served | None:
        """Tell what holds for a request; `ValueError` where this model or engine cannot follow it."""
        config, mm = self.info.get_hf_config(), self.info.ctx.get_mm_config()
        family = described(config)
        try:
            policy = self.vlmopt_at_start.asked(request)
            if policy is None:
                return None
            check_family(policy, family, self.info.ctx.model_config.uses_mrope)
            for need in policy.signals:
                check_signal(need, policy.last, config)
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"{KEY}: {error}") from error
        if mm.mm_encoder_tp_mode == "data" and (policy.before_tower is not None or policy.signals):
            raise ValueError(
                f"{KEY}: {(policy.before_tower or policy.last).name} acts inside the tower, which "
                "--mm-encoder-tp-mode data spreads over the ranks; use div_prune, or the mode weights"
            )
        return policy

    def vlmopt_shortened(self, policy: Served | None, modality: str, update: Any, fields: Any, kwargs: Any) -> Any:
        """Leave as many placeholders in the update as rows stay, and add the plan to the item's fields."""
        content = update.content
        whole = torch.ones(len(content.full), dtype=torch.bool)
        embed = whole if content.is_embed is None else content.is_embed(content.full)
        config = self.info.get_hf_config()
        item = Item(described(config), config, modality, int(embed.sum()), fields.get_data())
        item.check()
        frames = item.grid[0] if modality == "video" and item.family.frame_times and item.grid else 1
        if policy is not None:
            self.vlmopt_check_item(policy, item, int(embed[0]) + int((embed[1:] & ~embed[:-1]).sum()))
        plan = dense(item) if policy is None else planned(policy, item, self.vlmopt_normalizer(modality, kwargs))
        plan = replace(plan, spans=spans_of(embed, frames, plan))
        for name, data in smaller(plan, item).items():
            fields[name] = replace(fields[name], data=data)
        flat = {n: len(e.data) for n, e in fields.items() if isinstance(e.field, MultiModalFlatField)}
        for name, data in replace(plan, flat=flat).fields().items():
            fields[f"{KEY}_{name}"] = MultiModalFieldElem(data=data, field=MultiModalBatchedField(keep_on_cpu=True))
        stays = torch.arange(plan.count) if policy is None or not len(plan.keep) else plan.rows
        left = whole.masked_scatter(embed, markers.mask(stays, item.total))
        full = [token for token, stay in zip(content.full, left.tolist(), strict=True) if stay]
        return replace(update, content=Rows(full, content.is_embed, beyond(plan)))

    def vlmopt_check_item(self, policy: Served, item: Item, parts: int) -> None:
        """Refuse what a policy cannot do with this kind of item, whose rows text cuts into so many parts."""
        name = policy.last.name
        if parts > 1 and (policy.late or policy.numbering == "pospad"):
            raise ValueError(
                f"{KEY}: {name} chooses after the encoder, or marks runs, but words stand between the frames of "
                f"{item.family.name}, so their rows must be counted before; use uniform, random or ui_graph, or "
                "send null for this request"
            )
        if policy.signals and (item.family.name, item.modality) in POOLED:
            raise ValueError(
                f"{KEY}: {name} listens to the tower, but {item.family.name} pools the frames of videos, so that no "
                "token has a row of its own there; use div_prune, or send null for this request"
            )
        if PIXELS[item.modality] not in item.fields and any(isinstance(need, OF_TOWER) for need in policy.signals):
            raise ValueError(f"{KEY}: {name} listens to the tower, but embeddings were sent; use div_prune")

    def vlmopt_normalizer(self, modality: str, kwargs: Mapping[str, object]) -> Any:
        """Make what turns pixels as they travel, bytes on Qwen-VL, into what a Hugging Face processor gives."""
        processor = self.info.get_hf_processor(**without_key(kwargs))
        own = getattr(processor, f"{modality}_processor", None) or processor.image_processor

        def normalized(pixels: Tensor) -> Tensor:
            if pixels.dtype != torch.uint8:
                return pixels.float()
            mean, std = (torch.tensor(values).view(-1, 1) for values in (own.image_mean, own.image_std))
            values = pixels.view(len(pixels), len(mean), -1).float() * own.rescale_factor
            rows: Tensor = ((values - mean) / std).flatten(1)
            return rows

        return normalized

    def vlmopt_check_positions(self, ids: list[int], placeholders: Any, updates: Any) -> None:
        """Raise `ValueError` where no text tells the beginning of an image, or the model's table ends too early."""
        places = [place for m in MODALITIES for place in placeholders.get(m, ())]
        config = self.info.get_hf_config()
        visual = {config.image_token_id, config.video_token_id}
        inside = sum(token in visual for place in places for token in place.tokens)
        rows = sum(place.to_range().get_num_embeds() for place in places)
        if places and not rows == inside == sum(token in visual for token in ids):
            raise ValueError(
                f"{KEY}: the prompt's text holds a token that stands for images or videos (<|image_pad|>, "
                "<|video_pad|>), beside those of the images and videos themselves; leave it out"
            )
        edges = {place.start_idx for place in places} | {place.start_idx + place.length for place in places}
        if places and (0 in edges or len(ids) in edges or len(edges) < 2 * len(places)):
            raise ValueError(
                f"{KEY}: a text token has to stand before and behind every image and video, such as <|vision_start|> "
                "and <|vision_end|>"
            )
        contents = [update.content for m in MODALITIES for found in updates.get(m, ()) for update in found]
        table = 4 * config.get_text_config().max_position_embeddings  # vLLM's factor for M-RoPE
        furthest = self.info.ctx.model_config.max_model_len + sum(content.beyond for content in contents)
        if furthest > table:
            raise ValueError(
                f"{KEY}: positions would reach {furthest}, but the model has a table for {table}: keep more rows, or "
                "send fewer or smaller images and videos"
            )


@dataclass
class Rows(PromptUpdateDetails):
    """Placeholders, and by how much positions behind them go beyond their number. Caches keep it with the item."""

    beyond: int = 0

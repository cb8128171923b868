"""Front end: what vLLM makes of a served model's inputs, in engines that were started with the key and without it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from vllm.multimodal.processing import InputProcessingContext

from .behind import Behind
from .policies import KEY, AtStart, without_key
from .processor import Shortened


def factories_of(base: Any) -> dict[str, Any]:
    """Make what `register_processor` takes, from what a model class of vLLM is registered with."""
    own = base._processor_factory

    def info(ctx: InputProcessingContext) -> Any:
        if KEY not in engine_kwargs(ctx):
            return own.info(ctx)
        ctx = Context(ctx.model_config, ctx.tokenizer)
        kind: type = type(own.info(ctx))
        made = mixed(Whole, kind)(ctx)
        made.vlmopt_plain = lambda: own.processor(made, own.dummy_inputs(made))
        return made

    def processor(info: Any, dummy_inputs: Any) -> Any:
        kind: type = type(own.processor(info, dummy_inputs))  # a class, or a function that chooses one
        if KEY not in engine_kwargs(info.ctx):
            return mixed(Unasked, kind)(info, dummy_inputs)
        made = mixed(Shortened, kind)(info, dummy_inputs)
        made.vlmopt_at_start = AtStart.of(engine_kwargs(info.ctx)[KEY])
        made.vlmopt_policy({})  # refuses the engine's own policy at start
        return made

    return {"processor": processor, "info": info, "dummy_inputs": own.dummy_inputs}


def engine_kwargs(ctx: InputProcessingContext) -> Mapping[str, Any]:
    return ctx.get_mm_config().mm_processor_kwargs or {}


@lru_cache(maxsize=64)
def mixed(mix_in: type, kind: type) -> type:
    return type(kind.__name__, (mix_in, kind), {"__module__": kind.__module__})


class Context(InputProcessingContext):
    """The engine's context; no Hugging Face processor sees our key."""

    def get_merged_mm_kwargs(self, kwargs: Mapping[str, object], **options: Any) -> dict[str, Any]:
        merged: dict[str, Any] = super().get_merged_mm_kwargs(without_key(kwargs), **options)
        merged.pop(KEY, None)
        return merged


class Whole(Behind):
    """Mix-in before a family's processing info, for engines that were started with the key."""

    vlmopt_plain: Callable[[], Any]  # makes vLLM's own processor

    def get_mm_max_tokens_per_item(self, seq_len: int, mm_counts: Mapping[str, int]) -> Mapping[str, int]:
        """Count whole items: a request may ask for them, however few rows the engine's own policy leaves.

        vLLM gives no item more room among the encoder's outputs than this.
        """
        stated: Mapping[str, int] | None = super().get_mm_max_tokens_per_item(seq_len, mm_counts)
        if stated is not None:
            return stated
        places = self.vlmopt_plain().get_dummy_mm_inputs(mm_counts)["mm_placeholders"]
        return {modality: sum(place.get_num_embeds() for place in found) for modality, found in places.items()}


class Unasked(Behind):
    """Mix-in for engines that were started without the key: nothing differs, and nobody is served other than asked."""

    def apply(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if KEY in (inputs.hf_processor_mm_kwargs or {}):
            raise ValueError(
                f"{KEY}: this engine was started without the key; start it with --mm-processor-kwargs "
                f"'{{\"{KEY}\": null}}' to prune on request"
            )
        return super().apply(inputs, *args, **kwargs)

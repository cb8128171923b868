"""An engine of vLLM in this process, and the same question asked of vlmopt's own path over transformers."""

from __future__ import annotations

import gc
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import vlmopt

TOKENS = 4
SETTINGS = {
    "dtype": "float32", "max_model_len": 2048, "enforce_eager": True, "seed": 0, "block_size": 32,
    "limit_mm_per_prompt": {"image": 4, "video": 1},
}  # fmt: skip


@dataclass(frozen=True)
class Answer:
    prompt: int  # tokens
    ids: list[int]
    logprobs: list[float]
    cached: int = 0


class Engine:
    """One engine; policies come per request."""

    def __init__(self, folder: Path, policy: Any = None, **settings: Any) -> None:
        from vllm import LLM

        if policy != "absent":
            inspect_here(folder)
        kwargs = {} if policy == "absent" else {"mm_processor_kwargs": {"vlmopt": policy}}
        self.llm = LLM(str(folder), **{**SETTINGS, **kwargs, **settings})

    def prompt(self, text: str, images: Sequence[Any], video: Any = None, policy: Any = "engine", **more: Any) -> dict:
        data = {"image": list(images)} if images else {}
        data |= {} if video is None else {"video": [video]}
        kwargs = {} if policy == "engine" else {"mm_processor_kwargs": {"vlmopt": policy}}
        return {"prompt": text, "multi_modal_data": data, **kwargs, **more}

    def ask(self, text: str, *images: Any, tokens: int = TOKENS, **more: Any) -> Answer:
        return self.run([self.prompt(text, images, **more)], tokens)[0]

    def run(self, prompts: list[dict], tokens: int = TOKENS, **options: Any) -> list[Answer]:
        from vllm import SamplingParams

        sampling = SamplingParams(temperature=0, max_tokens=tokens, logprobs=1, **options)
        return [
            Answer(
                len(out.prompt_token_ids),
                list(out.outputs[0].token_ids),
                [
                    step[token].logprob
                    for step, token in zip(out.outputs[0].logprobs, out.outputs[0].token_ids, strict=True)
                ],
                out.num_cached_tokens or 0,
            )
            for out in self.llm.generate(prompts, sampling, use_tqdm=False)
        ]


def end(running: dict[str, Engine]) -> None:
    """End engines, and what those of one process share."""
    from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

    while running:
        running.popitem()[1].llm.llm_engine.engine_core.shutdown()
    cleanup_dist_env_and_memory()
    gc.collect()


def inspect_here(folder: Path) -> None:
    """Register a checkpoint's class itself, not its name: vLLM would import it in one more process to look at it."""
    from vllm import ModelRegistry
    from vllm.plugins import load_general_plugins

    from vlmopt_vllm import models

    load_general_plugins()
    for architecture in json.loads((folder / "config.json").read_text())["architectures"]:
        ModelRegistry.register_model(architecture, getattr(models, architecture))


def configured(folder: Path, **options: Any) -> Any:
    """The configuration of an engine that is not started."""
    from vllm.engine.arg_utils import EngineArgs

    inspect_here(folder)
    return EngineArgs(str(folder), **options).create_engine_config()


class Reference:
    """A checkpoint in transformers, pruned by `vlmopt.optimize`, every image with a budget of its own."""

    def __init__(self, folder: Path) -> None:
        self.model, self.processor = vlmopt.load_checkpoint(str(folder))

    def ask(self, text: str, *images: Any, policy: Mapping[str, Any] | list | None = None, tokens: int = TOKENS,
            **processed: Any) -> Answer:  # fmt: skip
        inputs = self.processor(text=[text], images=list(images) or None, return_tensors="pt", **processed)
        with vlmopt.optimized(self.model, policy) if policy else torch.no_grad():
            out = self.model.generate(
                **inputs, max_new_tokens=tokens, do_sample=False, output_logits=True, return_dict_in_generate=True
            )
            report = vlmopt.report(self.model).to_dict() if policy else {}
        ids = out.sequences[0, inputs["input_ids"].shape[1] :].tolist()
        logprobs = [float(step[0].float().log_softmax(-1)[i]) for step, i in zip(out.logits, ids, strict=True)]
        return Answer(report["key_lengths"][0] if policy else inputs["input_ids"].shape[1], ids, logprobs)


def same(served: Answer, reference: Answer, tolerance: float = 1e-4) -> bool:
    """Equal ids, and log-probabilities within the tolerance."""
    apart = max((abs(a - b) for a, b in zip(served.logprobs, reference.logprobs, strict=False)), default=0.0)
    return served.ids == reference.ids and apart <= tolerance

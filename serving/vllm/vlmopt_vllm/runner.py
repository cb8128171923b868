"""vLLM 0.32's runner for CPUs loads a model by its own code, and forgets to ask whether the model prunes."""

from __future__ import annotations

from functools import wraps
from typing import Any

ASKS = "vlmopt_asks"  # marks the method that asks


def let_cpu_runner_ask() -> None:
    """Ask after loading, as the runner for GPUs does: only then it hands embeddings to `recompute_mrope_positions`."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner

    load = CPUModelRunner.load_model
    if hasattr(load, ASKS):
        return

    @wraps(load)
    def load_model(self: Any, *args: Any, **kwargs: Any) -> None:
        load(self, *args, **kwargs)
        config, model = self.model_config.multimodal_config, self.get_model()
        asked = config is not None and getattr(model, "supports_multimodal_pruning", False)
        self.is_multimodal_pruning_enabled = asked and config.is_multimodal_pruning_enabled()

    setattr(load_model, ASKS, True)
    CPUModelRunner.load_model = load_model

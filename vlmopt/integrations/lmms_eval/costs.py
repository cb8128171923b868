"""What a run cost, for the figures that lmms-eval prints under `throughput`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import mean

from ...reporting import Report


@dataclass
class Costs:
    """Sums over the calls of one process."""

    seconds: float = 0.0
    tokens: int = 0
    visual: list[int] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)
    ttft: list[float] = field(default_factory=list)

    def add(self, made: Report, lengths: list[int], seconds: float) -> None:
        """Count one call: new tokens per sample, seconds from the inputs to the last token."""
        self.seconds += seconds
        self.tokens += sum(lengths)
        self.visual += [sample["visual_tokens"] for sample in made.samples]
        self.kept += [sample["visual_tokens_kept"] for sample in made.samples]
        if made.ms["ttft"] is not None:
            self.ttft.append(made.ms["ttft"])

    def log(self) -> None:
        """Hand the figures to lmms-eval; it shows them with `avg_` in front."""
        from lmms_eval.models.model_utils.gen_metrics import log_metrics

        lists: dict[str, Sequence[float]] = {
            "visual_tokens": self.visual,
            "visual_tokens_kept": self.kept,
            "call_ttft_ms": self.ttft,
        }
        log_metrics(
            total_elapsed_time=self.seconds,
            total_gen_tokens=self.tokens,
            avg_speed=self.tokens / self.seconds if self.seconds else 0.0,
            additional_metrics={name: mean(values) for name, values in lists.items() if values},
        )

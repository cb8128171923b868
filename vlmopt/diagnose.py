"""List the attention sinks of one prompt on one model: what `sink_diagnosis` finds, with the tokens' names."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vlmopt.attention_fix import SinkDiagnosis, SinkProfile
from vlmopt.core import hinting

from .api import optimized, report
from .offload import device_of
from .reporting import VisualMap

LISTED = 20  # tokens of a sample in a table


@dataclass(frozen=True)
class SinkReport:
    """Sinks by sample. `str()` is a table of those that last longest, `to_dict()` is complete and JSON-ready.

    Every sample holds `first_token`, its `band` of massive activations, `tokens`, secondary `levels`, and `visual`. A
    token has its place, what it is, cell (image, frame, row and column of a patch), kind (primary, secondary or None),
    first_layer and lifetime of the likeness to the first token, and visual_sink_layers. `visual` holds the sinks per
    layer by VAR's rule, and `overlap`, the share of them inside the band that is like the first token; below 0.5 the
    dimensions are in doubt. `visual` is None where no dimensions are known.
    """

    layers: int
    samples: tuple[dict[str, Any], ...]

    def to_dict(self) -> dict[str, Any]:
        return {"layers": self.layers, "samples": copy.deepcopy(list(self.samples))}

    def lifetimes(self, maps: Sequence[VisualMap], sample: int = 0) -> list[Tensor]:
        """Return fp32 [n] per image: in how many layers each token is a sink by either rule; NaN: none."""
        found = {tuple(t["cell"]): t for t in self.samples[sample]["tokens"] if t["cell"] is not None}
        out = []
        for m in maps:
            tokens = [found.get((m.item, *cell)) for cell in m.coords.tolist()]
            layers = [float("nan") if t is None else max(t["lifetime"], t["visual_sink_layers"]) for t in tokens]
            out.append(torch.tensor(layers, dtype=torch.float32))
        return out

    def __str__(self) -> str:
        return "\n\n".join("\n".join(self.table(sample)) for sample in range(len(self.samples)))

    def table(self, number: int) -> list[str]:
        """Write the lines about one sample."""
        sample = self.samples[number]
        tokens = sorted(sample["tokens"], key=lambda t: (-t["lifetime"], -t["visual_sink_layers"], t["place"]))
        out = [f"sample {number}: {sample['summary']}"]
        if tokens:
            out.append(f"{'place':>7} {'token':<32} {'kind':<10} {'like the first in':<18} visual sink in")
        for token in tokens[:LISTED]:
            first, lifetime, visual = token["first_layer"], token["lifetime"], token["visual_sink_layers"]
            alike = f"{lifetime} layers from {first}" if lifetime else "-"
            seen = f"{visual} layers" if visual else "-"
            out.append(f"{token['place']:>7} {token['what']:<32} {token['kind'] or '-':<10} {alike:<18} {seen}")
        if len(tokens) > LISTED:
            out.append(f"{len(tokens) - LISTED} more")
        return out


@torch.inference_mode()
@hinting
def diagnose_sinks(
    model: nn.Module,
    inputs: Mapping[str, Any],
    *,
    profile: SinkProfile | None = None,
    dims: tuple[int, ...] = (),
    tau: float | None = None,
    tokenizer: Any = None,
) -> SinkReport:
    """Run a prompt through the unpruned, uncorrected model and list its attention sinks.

    Args:
        model: a loaded vision-language model; a policy that is installed is put back afterwards.
        inputs: what `model(**inputs)` takes, any batch. tokenizer: names text tokens, which are numbers otherwise.
        profile, dims, tau: which hidden dimensions visual sinks stand out in, as for `visual_sink`; the published
            ones of the model without any.

    Raises:
        ValueError, TypeError: as `optimize`, and for dimensions that do not fit the model.
    """
    device = device_of(model)
    moved = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in inputs.items()}
    with optimized(model, SinkDiagnosis(profile=profile, dims=dims, tau=tau)):
        model(**moved, use_cache=False)
        found = report(model)
    (entry,) = found.corrections
    for ids, sample in zip(inputs["input_ids"].tolist(), entry["found"], strict=True):
        for token in (t for t in sample["tokens"] if t["what"] == "text"):
            number = ids[token["place"]]
            token["what"] = f"token {number}" if tokenizer is None else repr(tokenizer.decode([number]))
    return SinkReport(len(found.key_lengths), tuple(entry["found"]))

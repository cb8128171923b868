"""The result of a prediction: every policy on every device, as data and as a table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from .tiles import Size


@dataclass(frozen=True)
class Prediction:
    """One policy on one device. Milliseconds and bytes are of the whole batch, tokens of one sample."""

    policy: str
    device: str
    title: str  # of the device
    dtype: str
    prompt_tokens: int  # before any cut
    text_tokens: int  # of them
    visual_tokens: float  # left, as a mean over the layers of the LLM
    vision_flops: float  # tower and projector
    scoring_flops: float
    prefill_flops: float
    step_flops: float  # of one generated token
    vision_ms: float
    scoring_ms: float
    prefill_ms: float
    token_ms: float  # mean over the generated tokens
    new_tokens: int
    batch: int
    weights_bytes: int
    kv_bytes: int  # of one sample, when its last token is written
    kv_peak_bytes: int  # of one sample, at most: what evictions leave is known when the prompt has been read
    peak_bytes: int
    memory_bytes: int
    largest_batch: int
    notes: tuple[str, ...]

    @property
    def ttft_ms(self) -> float:
        """To the first token, without preprocessing."""
        return self.vision_ms + self.scoring_ms + self.prefill_ms

    @property
    def total_ms(self) -> float:
        return self.ttft_ms + (self.new_tokens - 1) * self.token_ms

    @property
    def tokens_per_s(self) -> float:
        """Generated tokens of all samples, while they are generated."""
        return 1e3 * self.batch / self.token_ms

    @property
    def untouchable(self) -> float:
        """Share of the time to the first token that no pruning behind the vision tower can save."""
        return self.vision_ms / self.ttft_ms

    @property
    def fits(self) -> bool:
        return self.peak_bytes <= self.memory_bytes

    def to_dict(self) -> dict[str, Any]:
        """Return it JSON-ready, with what follows from the rest."""
        more = ("ttft_ms", "total_ms", "tokens_per_s", "untouchable", "fits")
        return {**asdict(self), "notes": list(self.notes), **{name: getattr(self, name) for name in more}}


@dataclass(frozen=True)
class Estimate:
    """Predictions for one model and prompt. `str()` is a table, `to_dict()` is JSON-ready."""

    model: str
    model_type: str
    origin: str  # where config and processor settings come from
    parameters: int
    images: tuple[Size, ...]  # (height, width) in pixels
    visual_tokens: int
    text_tokens: int  # what the processor puts around images included
    new_tokens: int
    batch: int
    engine: str
    predictions: tuple[Prediction, ...]

    def of(self, policy: str, device: str) -> Prediction:
        """Return the prediction for a policy on a device.

        Raises:
            KeyError: there is none.
        """
        for one in self.predictions:
            if (one.policy, one.device) == (policy, device):
                return one
        raise KeyError((policy, device))

    def by_device(self) -> Iterator[tuple[Prediction, list[Prediction]]]:
        """Return (dense, all policies, dense among them) for every device."""
        for device in dict.fromkeys(one.device for one in self.predictions):
            rows = [one for one in self.predictions if one.device == device]
            yield rows[0], rows

    def to_dict(self) -> dict[str, Any]:
        """Return it JSON-ready; `kind` says that nothing was measured."""
        own = {name: value for name, value in vars(self).items() if name != "predictions"}
        return {
            "kind": "prediction",
            **own,
            "images": [list(size) for size in self.images],
            "predictions": [one.to_dict() for one in self.predictions],
        }

    def __str__(self) -> str:
        blocks = [line for dense, rows in self.by_device() for line in block(dense, rows)]
        return "\n".join([self.headline(), *blocks])

    def headline(self) -> str:
        """Return the model and the prompt in one line."""
        shapes = [f"{w}x{h}" for h, w in self.images] or ["no image"]
        more = f" and {len(shapes) - 3} more" if len(shapes) > 3 else ""
        tokens = f"{self.visual_tokens} visual and {self.text_tokens} other tokens, {self.new_tokens} new"
        return (
            f"{self.model}, {self.parameters / 1e9:.2f} B parameters: {', '.join(shapes[:3])}{more} -> {tokens}, "
            f"batch {self.batch}. Predicted, not measured."
        )


COLUMNS = (
    ("visual", 7), ("tower", 9), ("choose", 8), ("prefill", 9), ("TTFT ms", 9), ("x", 6), ("ms/token", 9),
    ("tokens/s", 9), ("total s", 8), ("x", 6), ("KV MB", 7), ("peak GB", 8), ("batch", 6),
)  # fmt: skip


def block(dense: Prediction, rows: list[Prediction]) -> Iterator[str]:
    """Return the lines of one device."""
    width = max(len(one.policy) for one in rows)
    yield ""
    yield f"{dense.title}, {dense.dtype}"
    yield f"{'policy':<{width}}" + "".join(f"{name:>{size}}" for name, size in COLUMNS)
    for one in rows:
        cells = (
            f"{one.visual_tokens:.0f}", f"{one.vision_ms:.1f}", f"{one.scoring_ms:.1f}", f"{one.prefill_ms:.1f}",
            f"{one.ttft_ms:.1f}", f"{dense.ttft_ms / one.ttft_ms:.2f}", f"{one.token_ms:.1f}",
            f"{one.tokens_per_s:.0f}", f"{one.total_ms / 1e3:.2f}", f"{dense.total_ms / one.total_ms:.2f}",
            f"{one.kv_bytes / 1e6:.0f}", f"{one.peak_bytes / 1e9:.1f}" + ("" if one.fits else "!"),
            f"{one.largest_batch}",
        )  # fmt: skip
        yield f"{one.policy:<{width}}" + "".join(f"{c:>{size}}" for c, (_, size) in zip(cells, COLUMNS, strict=True))
    yield (
        f"The tower is {100 * dense.untouchable:.0f} % of the dense time to the first token: pruning behind it gains "
        f"at most {1 / dense.untouchable:.2f} x."
    )
    if not all(one.fits for one in rows):
        yield f"! more than the {dense.memory_bytes / 1e9:.0f} GB of this device"
    for one in rows:
        yield from (f"{one.policy}: {note}" for note in one.notes)

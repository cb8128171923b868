"""The contract of a correction: its settings, the layers it acts in, what it reads, and its one edit."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, TypeVar

import torch
from torch import Tensor

from vlmopt.core import Configured, Registry, Signal, setting, validate

from .layers import check_layers, layer_numbers

Same = TypeVar("Same", bound="Correction")


@dataclass(frozen=True)
class Residual(Signal):
    """The residual stream that enters each of the correction's layers, of every token of the prompt."""


@dataclass(frozen=True)
class Tower(Signal):
    """Attention that each patch received in one block of the vision tower (negative: from the end)."""

    block: int


@dataclass(frozen=True)
class TextOnly(Signal):
    """Head outputs of the last prompt row for the same prompt without its images."""


@dataclass(frozen=True, eq=False)
class RowView:
    """What is known of R query rows and K keys of one layer, for a batch of B samples.

    `allowed` is broadcast; everything else is per sample. Keys are those that the layer stores: after pruning fewer
    than the prompt had, padding and unfilled slots of a static cache among them.
    """

    layer: int
    depth: int  # decoder layers of the model
    allowed: Tensor | None  # Bool[B or 1, 1 or H, R, K]: the row may attend to the key; None: every row to all keys
    rows: Tensor  # Bool[B, R]: rows that may be edited
    image: Tensor  # Bool[B, K]: real visual tokens
    span: Tensor  # Long[B, K]: running number of the image, -1 elsewhere
    system: Tensor  # Bool[B, K]: real text before the first visual token
    generated: Tensor  # Bool[B, K]: tokens that `generate` produced
    marks: Mapping[str, Tensor] = field(default_factory=dict)  # Bool[B, K] by name, from `mark` and `choose`
    sets: Tensor | None = None  # [B, n, K] from the correction's own `sets`, where they were made before
    known: dict[Any, tuple[Tensor, Tensor]] = field(default_factory=dict)  # answers; layers of one mask share them

    def sees(self, keys: Tensor) -> Tensor:
        """Return Bool[B, 1 or H, 1 or R, K]: which of `keys` Bool[B, K] each row may attend to."""
        return self.once("sees", keys, lambda: self.mask_of(keys))

    def sees_any(self, keys: Tensor) -> Tensor:
        """Return Bool[B, 1 or H, 1 or R]: whether a row may attend to any of `keys` Bool[B, K]."""
        return self.once("any", keys, lambda: self.sees(keys).any(-1))

    def indicator(self, keys: Tensor, dtype: torch.dtype) -> Tensor:
        """Return `sees(keys)` as 1 and 0."""
        return self.once(dtype, keys, lambda: self.sees(keys).to(dtype))

    def once(self, what: object, keys: Tensor, make: Callable[[], Tensor]) -> Tensor:
        """Return an answer about `keys`, made once; who asks must not change it in place."""
        if (what, id(keys)) not in self.known:
            self.known[what, id(keys)] = keys, make()  # holding the keys keeps their id from being reused
        return self.known[what, id(keys)][1]

    def mask_of(self, keys: Tensor) -> Tensor:
        keys = keys[:, None, None, :]
        return keys if self.allowed is None else keys & self.allowed


@dataclass(frozen=True, kw_only=True)
class Correction(Configured, ABC):
    """Base of every correction; registered with `register`.

    Raises:
        TypeError, ValueError: a setting of the wrong type or out of range.
    """

    name: ClassVar[str] = ""  # set by `register`
    reads: ClassVar[str] = "attention"  # what the change depends on, in words, for tables
    group: ClassVar[str] = ""  # a policy may hold one correction of a group

    layers: str = setting(
        "2:",
        "Decoder layers, as indices and slices with a comma between: '2:-1' is all but the first two and the last, "
        "'1,-44%:' layer 1 and the last 44 %.",
        "str",
    )

    def __post_init__(self) -> None:
        validate(self, self.name or type(self).__name__)
        check_layers(self.layers, self.name or type(self).__name__)

    @property
    def needs(self) -> frozenset[Signal]:
        """What the runtime has to capture for this correction."""
        return frozenset()

    @property
    @abstractmethod
    def is_identity(self) -> bool:
        """True if these settings change nothing."""

    @property
    def source(self) -> str | None:
        """Where the measured numbers come from, for the report; None without any."""
        return None

    @property
    def idle(self) -> str | None:
        """Why there is nothing to do on the model that was measured, in which case it changes nothing; else None."""
        return None

    @property
    def caution(self) -> str | None:
        """A warning to show to whoever uses these settings; None without one."""
        return None if self.idle is None else f"{self.name} changes nothing: {self.idle}"

    def at(self, depth: int) -> frozenset[int]:
        """Return the layers in which it acts, in a model with `depth` decoder layers.

        Raises:
            ValueError: a layer that does not exist.
        """
        return layer_numbers(self.layers, depth, self.name)

    def check_model(self, model: Mapping[str, Any]) -> None:
        """Raise `ValueError` if measured numbers do not belong to this model.

        Args:
            model: model_type, hidden_size, layers, num_heads, num_kv_heads, head_dim, name_or_path.
        """

    def for_model(self: Same, model: Mapping[str, Any]) -> Same:
        """Return this correction with what is known of the model filled in.

        Args:
            model: as for `check_model`, and whole_blocks: the blocks of a vision tower with windows that see the whole
                image (None: all of them).

        Raises:
            ValueError: something has to be known and is not, or was measured on another model.
        """
        self.check_model(model)
        return self

    def mark(self, hidden: Tensor) -> dict[str, Tensor]:
        """Mark tokens by their residual stream `hidden` [B, W, D]: named Bool[B, W]; called if it needs `Residual`."""
        raise NotImplementedError

    def choose(self, tower: Mapping[int, Tensor]) -> dict[str, Tensor]:
        """Choose among one image's n tokens by fp32 [n] per tower block: named Bool[n]; called if it needs `Tower`."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class RowCorrection(Correction):
    """Base of corrections of attention rows: override `edit`.

    `stage` says what is edited: "logits", after scaling, soft-capping and mask, or "weights", after the softmax.
    `rows` says which rows: "text", every text row that may see a visual key, or "last", rows that predict a token.
    """

    stage: ClassVar[str] = "weights"
    rows: ClassVar[str] = "text"

    passthrough: str = setting(
        "exact",
        "While decoding: exact: run the model's kernel, then overwrite what was edited, so that all else keeps its "
        "bits; fast: the explicit rows replace the kernel, and unedited heads equal it to rounding.",
        "str",
        choices=("exact", "fast"),
    )

    @abstractmethod
    def edit(self, values: Tensor, view: RowView) -> tuple[Tensor, Tensor]:
        """Return (values after the edit fp32 [B, H, R, K], edited Bool[B, H, R]); never edit in place.

        Logits of keys that are not allowed are the finite minimum, their weights exactly 0. Rows and heads that are
        not marked as edited keep the kernel's output, whatever stands in the first tensor.
        """

    def sets(self, image: Tensor, marks: Mapping[str, Tensor]) -> Tensor | None:
        """Return fp32 [B, n, K], key by key, from Bool[B, K] tables of the prompt.

        Called once per prompt; the result is then found in `RowView.sets`.
        """
        return None

    def measure(self, values: Tensor, view: RowView) -> dict[str, Tensor]:
        """Measure the rows before the edit: named scalars for the report; called for prompts only."""
        return {}


@dataclass(frozen=True, kw_only=True)
class HeadCorrection(Correction):
    """Base of corrections of head outputs before the output projection, in rows that predict: override `gain`."""

    def gain(self, heads: Tensor, text_only: Tensor | None, layer: int) -> Tensor:
        """Return fp32 [B, H], 1 = unchanged; called once per prompt, then used for every generated token.

        Args:
            heads: [B, H, D] outputs of the last prompt row. text_only: the same without images, if it needs that.
        """
        raise NotImplementedError


class Listening(Protocol):
    """Base of what a diagnosis gathers from one prompt, layer by layer."""

    def add(self, hidden: Tensor) -> None:
        """Take in the residual stream behind the next decoder layer, [B, N, D]; 0 where a token was dropped."""

    def found(self, image: Tensor, names: Sequence[Mapping[int, str]]) -> list[dict[str, Any]]:
        """Return JSON-ready findings, one per sample, with a line for tables under "summary".

        Args:
            image: Bool[B, N], visual tokens. names: per sample, the names of its visual tokens, by position.
        """


@dataclass(frozen=True, kw_only=True)
class Diagnosis(Correction):
    """Base of methods that change nothing and listen to the residual stream of prompts: override `listen`."""

    @property
    def is_identity(self) -> bool:
        return False  # it would not be installed

    def listen(self, valid: Tensor) -> Listening:
        """Start to listen to a prompt; valid Bool[B, N] is False on padding."""
        raise NotImplementedError


registry: Registry[Correction] = Registry(Correction)  # type: ignore[type-abstract]
register = registry.register


def no_rows(values: Tensor) -> Tensor:
    """Return Bool[B, H, R], all False: no row is edited."""
    return torch.zeros(values.shape[:3], dtype=torch.bool, device=values.device)

"""What selectors read of tower and projector, heard while these run.

A tower's rows reach the LLM through window orders, tiles and row ends of the model's own. Equal bits say which row of
the projector became which token, as in vlmopt's own captures; so one item is encoded at a time while anybody listens.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from vllm.distributed import get_tensor_model_parallel_world_size, tensor_model_parallel_all_reduce
from vllm.logger import init_logger
from vllm.model_executor.layers.attention import MMEncoderAttention

from vlmopt.families import Family
from vlmopt.pruning import Projector, ProjectorCall, Selector, Signal, TwoLayers, VisionAttention, VisionKeys
from vlmopt.runtime.captures.projector import fingerprint, group_patches, two_layers
from vlmopt.runtime.captures.vision_attention import column_mean, has_cls

from .dense import dense_copy, only
from .families import part
from .policies import KEY

logger = init_logger(__name__)


def check_signal(need: Signal, method: Selector, config: Any) -> None:
    """Raise `ValueError` if a block of the tower cannot be read."""
    if not isinstance(need, (VisionAttention, VisionKeys)):
        return
    vision, ran = config.vision_config, blocks_run(config)
    if place(need.layer, config) not in range(ran):
        raise ValueError(
            f"{method.name}: block {need.layer} of the tower cannot be read; blocks 0..{ran - 1} of {depth(config)} run"
        )
    whole = getattr(vision, "fullatt_block_indexes", None)
    if whole is not None and place(need.layer, config) not in whole:
        raise ValueError(
            f"{method.name}: block {need.layer} of the tower attends inside small windows only; blocks that see the "
            f"whole image: {', '.join(str(i) for i in sorted(whole))} of {depth(config)}"
        )


def depth(config: Any) -> int:
    vision = config.vision_config
    return int(getattr(vision, "depth", None) or vision.num_hidden_layers)


def blocks_run(config: Any) -> int:
    """Count blocks up to the last one whose output is used; vLLM builds no others."""
    layers = getattr(config, "vision_feature_layer", -1)
    layers = layers if isinstance(layers, (list, tuple)) else [layers]
    return max(int(layer) + depth(config) + 1 if layer < 0 else int(layer) for layer in layers)


def place(layer: int, config: Any) -> int:
    """Give the index of a block; negative numbers count from the end of the whole tower."""
    return layer + depth(config) if layer < 0 else layer


class Listener:
    """Hears the tower and the projector of a model, for one item at a time."""

    def __init__(self, model: nn.Module, family: Family, config: Any) -> None:
        self.model, self.family, self.config = model, family, config
        self.projector, self.tower = part(model, family.projector), part(model, family.vision_tower)
        self.blocks = [m for m in self.tower.modules() if isinstance(m, MMEncoderAttention)]
        self.cls = has_cls(self.tower)
        self.layers: TwoLayers | None = None
        self.copied = False  # weights of a serving engine never change, so once is enough

    @contextmanager
    def hearing(self, needs: Sequence[Signal]) -> Iterator[Heard]:
        """Hear what is needed of everything that runs inside."""
        heard, hooks = Heard(self), []
        # Modules that vLLM may compile call their forward directly, past any hooks.
        self.projector.forward = heard.projecting(self.projector.forward)
        for need in needs:
            if isinstance(need, (VisionAttention, VisionKeys)):
                block = self.blocks[place(need.layer, self.config)]
                hooks.append(block.register_forward_pre_hook(heard.attending(need, block), with_kwargs=True))
        try:
            yield heard
        finally:
            del self.projector.forward
            for hook in hooks:
                hook.remove()

    def two_layers(self, rows: Tensor) -> TwoLayers | None:
        """Copy the projector as an MLP with one hidden layer, None where it is none; rows [k, p, d_v] are tried out."""
        if not self.copied:
            twin = dense_copy(self.projector)
            self.layers = None if twin is None else two_layers(twin, rows[:2], self.project(rows[:2]))
            self.copied = True
        return self.layers

    def project(self, patches: Tensor) -> Tensor:
        """Run the projector on [k, p, d_v]."""
        return only(self.projector.forward(patches.flatten(0, 1)))


class Heard:
    """What was heard of one item."""

    def __init__(self, listener: Listener) -> None:
        self.listener = listener
        self.inputs: list[Tensor] = []
        self.outputs: list[Tensor] = []
        self.of_blocks: dict[Signal, list[Tensor]] = defaultdict(list)  # [items, patches, c]

    def projecting(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap the projector's forward, with what goes in and comes out kept."""

        def run(patches: Tensor, *args: Any, **kwargs: Any) -> Any:
            out = forward(patches, *args, **kwargs)
            self.inputs.append(patches)
            self.outputs.append(only(out))
            return out

        return run

    def attending(self, need: Any, block: Any) -> Any:
        """Make a hook before attention; q and k arrive rotated, [B, s, heads, d] or with heads and d joined."""

        @torch.no_grad()
        def read(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            given = dict(zip(("query", "key", "value", "cu_seqlens"), args, strict=False)) | dict(kwargs)
            query, key = (heads(given[name], block.head_size) for name in ("query", "key"))  # [B, h, s, d]
            bounds = given.get("cu_seqlens")
            lengths = [query.shape[2]] if bounds is None else bounds.diff().tolist()
            for q, k in zip(query.split(lengths, 2), key.split(lengths, 2), strict=True):
                self.of_blocks[need].append(self.received(need, q, k, block.scale))

        return read

    def received(self, need: VisionAttention | VisionKeys, query: Tensor, key: Tensor, scaling: float) -> Tensor:
        """Read one segment, fp32 [B, patches, c]: attention received, or keys; mean over the heads of all ranks."""
        first = int(self.listener.cls)
        try:
            if isinstance(need, VisionKeys):
                values = key.float().mean(1)[:, first:]
            else:
                rows = query[:, :, :1] if first and need.rows == "cls" else query
                values = column_mean(rows, key, float(scaling))[:, first:, None]
        except RuntimeError as error:  # no memory, of which nobody measured this need; the tower and other ranks go on
            logger.error("%s: nothing was read of the tower: %s", KEY, error)
            width = key.shape[3] if isinstance(need, VisionKeys) else 1
            values = torch.full((key.shape[0], key.shape[2] - first, width), torch.nan, device=key.device)
        ranks = get_tensor_model_parallel_world_size()
        # Sums over ranks are made of numbers as they lie in memory.
        return values if ranks == 1 else tensor_model_parallel_all_reduce(values.contiguous()) / ranks

    def signals(self, needs: Sequence[Signal], rows: Tensor) -> dict[Signal, Any]:
        """Read the needs, for the rows [n, d] that the LLM is to get of the item."""
        outputs = torch.cat([out.flatten(0, -2) for out in self.outputs])
        prints, order = fingerprint(outputs).sort(stable=True)
        wanted = fingerprint(rows[:, : outputs.shape[1]].to(outputs).contiguous())
        index = torch.searchsorted(prints, wanted).clamp_max(len(prints) - 1)
        row = torch.where(prints[index] == wanted, order[index], -1)  # -1: made by the model, such as row ends
        if not bool((row >= 0).any()):
            raise ValueError("no row that the LLM is given is one of the projector's")
        return {need: self.signal(need, row, len(outputs)) for need in needs}

    def signal(self, need: Signal, row: Tensor, count: int) -> Any:
        if isinstance(need, Projector):
            grouped = torch.cat([group_patches(i, o) for i, o in zip(self.inputs, self.outputs, strict=True)])
            return ProjectorCall(
                taken(grouped, row, float("nan")), self.listener.project, self.listener.two_layers(grouped)
            )
        arrange, model = self.listener.family.patches, self.listener.model
        values = torch.cat([arrange(model, v).flatten(0, -2) for v in self.of_blocks[need]])
        per_row = taken(values.reshape(count, -1, values.shape[-1]).mean(1), row, 0.0)
        return per_row if isinstance(need, VisionKeys) else per_row[:, 0]


def heads(x: Tensor, size: int) -> Tensor:
    """Arrange [B, s, heads, d] or [B, s, heads * d] as [B, heads, s, d]."""
    return (x if x.ndim == 4 else x.unflatten(-1, (-1, size))).transpose(1, 2)


def taken(per_row: Tensor, row: Tensor, fill: float) -> Tensor:
    """Take values [rows, ...] for the tokens `row` Long[n]; `fill` where it is -1."""
    known = (row >= 0).view(-1, *[1] * (per_row.ndim - 1))
    return torch.where(known, per_row[row.clamp_min(0)], torch.full_like(per_row[:1], fill))

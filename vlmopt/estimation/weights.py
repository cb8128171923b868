"""What a model consists of, read off its modules on the meta device: matrices by part and layer, no values."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ..checkpoints.processor import FAILURES, first_line
from ..families import family_of
from ..runtime.compat import layer_types
from ..runtime.structure import attention_of, part, shared_key_source, structure_of
from .tokens import first, has_cls

PRODUCTS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
PROJECTION = "mm_input_projection_weight"  # Gemma3 multiplies by a bare parameter


@dataclass(frozen=True)
class Matrices:
    """Weights by which every row of a part is multiplied."""

    per_row: float = 0  # multiply-adds of one row; with experts, of those that it is sent to
    stored: int = 0  # parameters of the part, whatever they are for
    values: float = 0  # numbers that the products of one row read and write
    experts: int = 0  # of `stored`, those of experts
    of: int = 0  # experts, 0 where there are none
    at_once: int = 0  # experts that one row is sent to

    def read(self, rows: float) -> float:
        """Count the parameters that `rows` rows need: experts that none of them is sent to stay where they are."""
        if not self.of:
            return self.stored
        reached: float = 1 - (1 - self.at_once / self.of) ** rows
        return self.stored - self.experts * (1 - reached)


@dataclass(frozen=True)
class Layer:
    """One decoder layer."""

    matrices: Matrices
    kind: str  # "full" | "sliding" | "recurrent" (no keys)
    heads: int = 0
    key_heads: int = 0
    head_dim: int = 0
    window: int = 0  # keys that a row sees at most; 0: all
    last_row_only: bool = False  # of a prompt only the row that predicts is computed (Gemma4)
    shares_keys: bool = False
    state: int = 0  # numbers that a recurrent layer carries along
    delta: tuple[int, int, int] = (0, 0, 0)  # value heads, key and value width of a gated delta rule


@dataclass(frozen=True)
class Tower:
    """The vision tower up to its projector."""

    patchify: Matrices  # every patch once; of a tower of convolutions alone, every pixel
    blocks: Matrices  # every patch, and a CLS row, through all blocks together
    depth: int
    width: int  # heads * head dim
    cls: int
    window: int  # patches along a side of a window; 0 where every block sees the whole item
    whole: int  # blocks that see the whole item


@dataclass(frozen=True)
class Parts:
    """A model's parts; counts are parameters, not bytes."""

    tower: Tower
    projector: Matrices  # every row that leaves the projector
    layers: tuple[Layer, ...]
    beside: Matrices  # what a decoder computes of its input besides the layers
    head: Matrices  # the row that predicts
    parameters: int
    width: int
    vocabulary: int


def on_meta(config: Any) -> nn.Module:
    """Return the model of a config without any weights.

    Raises:
        ValueError: transformers cannot make it, a size of it is 0, or it is quantised.
    """
    from transformers import AutoModelForImageTextToText

    if getattr(config, "quantization_config", None):
        raise ValueError(
            f"the config of {config.model_type} is that of a quantised model; give that of the plain one: weights are "
            "counted in the dtype that is asked for"
        )
    try:
        with torch.device("meta"):
            model: nn.Module = AutoModelForImageTextToText.from_config(config).eval()
    except FAILURES as error:
        said = first_line(error) or type(error).__name__
        raise ValueError(f"transformers cannot make a {config.model_type} of this config: {said}") from error
    empty = next((name for name, weight in model.named_parameters() if not weight.numel()), None)
    if empty is not None:
        raise ValueError(f"a size in this config of a {config.model_type} is 0: {empty} is empty")
    return model


def parts_of(model: Any) -> Parts:
    """Count a model's parts; weights may lie on any device, and are not read.

    Raises:
        ValueError: a model without decoder, or of a family that is not described.
    """
    structure, family, config = structure_of(model), family_of(model.config), model.config
    if not family.described:
        raise ValueError(
            f"{config.model_type} is not described in vlmopt.families, so its tower and projector are not known"
        )
    outer, text = structure.outer, structure.config
    vision = part(outer, family.vision_tower)
    merged = matrices(vision, lambda name: "merger" in name)
    outside = Matrices() if "visual.merger" in family.projector else matrices(part(outer, family.projector))
    head = model.get_output_embeddings()
    return Parts(
        tower=tower(vision, config),
        projector=together(merged, outside),
        layers=tuple(decoder_layers(structure, text)),
        beside=matrices(structure.decoder, lambda name: not name.startswith("layers.")),
        head=matrices(head),
        parameters=sum(p.numel() for p in {id(p): p for p in model.parameters()}.values()),
        width=text.hidden_size,
        vocabulary=head.weight.shape[0],
    )


def matrices(module: nn.Module, wanted: Any = lambda name: True, top_k: int = 0) -> Matrices:
    """Sum up the products of a module's parts whose dotted name is `wanted`."""
    per_row, values, experts, of = 0.0, 0.0, 0, 0
    for name, child in module.named_modules():
        if not wanted(name):
            continue
        for own, weight in child.named_parameters(recurse=False):
            if isinstance(child, PRODUCTS) and own == "weight":
                per_row += weight.numel()
                groups = getattr(child, "groups", 1)
                values += weight.shape[0] + weight.numel() / weight.shape[0] * (1 if groups == 1 else groups)
            elif own == PROJECTION:
                per_row += weight.numel()
                values += sum(weight.shape)
            elif weight.ndim == 3 and top_k:
                of = weight.shape[0]
                experts += weight.numel()
                per_row += weight.numel() * top_k / of
                values += top_k * sum(weight.shape[1:])
    stored = sum(p.numel() for name, p in module.named_parameters() if wanted(name.rpartition(".")[0]))
    return Matrices(per_row, stored, values, experts, of, top_k if of else 0)


def together(*parts: Matrices) -> Matrices:
    """Join parts without experts, one after the other on the same rows."""
    return Matrices(sum(p.per_row for p in parts), sum(p.stored for p in parts), sum(p.values for p in parts))


def decoder_layers(structure: Any, config: Any) -> Iterator[Layer]:
    """Describe every decoder layer."""
    kinds = layer_types(config) or ["full_attention"] * len(structure.layers)
    top_k = int(getattr(config, "num_experts_per_tok", 0) or 0)
    shared = [
        attention is not None and shared_key_source(structure.attentions, i) is not None
        for i, attention in enumerate(structure.attentions)
    ]
    for i, (layer, attention) in enumerate(zip(structure.layers, structure.attentions, strict=True)):
        unused = ("k_proj", "v_proj", "k_norm", "v_norm") if shared[i] else ()
        own = matrices(layer, lambda name, unused=unused: name.rpartition(".")[2] not in unused, top_k)
        if attention is None:
            yield recurrent(layer, own)
            continue
        if not hasattr(attention, "head_dim"):
            raise ValueError(
                f"{type(attention).__name__} has no head_dim: its keys and values are no heads of one width, and what "
                "they cost cannot be predicted; `vlmopt estimate --models` lists models that can be"
            )
        dim = int(attention.head_dim)
        sliding = kinds[i] == "sliding_attention"
        keys = getattr(attention, "k_proj", None)
        yield Layer(
            own,
            "sliding" if sliding else "full",
            heads=int(attention.config.num_attention_heads),
            key_heads=int(config.num_key_value_heads) if keys is None else keys.weight.shape[0] // dim,
            head_dim=dim,
            window=int(config.sliding_window or 0) if sliding else 0,
            last_row_only=shared[i],
            shares_keys=shared[i],
        )


def recurrent(layer: nn.Module, own: Matrices) -> Layer:
    """Describe a layer that carries a state instead of keys: a gated delta rule, or a short convolution."""
    mixer: Any = next((m for m in layer.modules() if hasattr(m, "head_k_dim")), None)
    if mixer is not None:
        heads, k, v = int(mixer.num_v_heads), int(mixer.head_k_dim), int(mixer.head_v_dim)
        return Layer(own, "recurrent", state=heads * k * v, delta=(heads, k, v))
    kernel = next((m for m in layer.modules() if isinstance(m, nn.Conv1d)), None)
    return Layer(own, "recurrent", state=0 if kernel is None else kernel.weight.numel())


def tower(module: nn.Module, config: Any) -> Tower:
    """Describe the vision tower."""
    vision = config.vision_config
    lists = [m for m in module.modules() if isinstance(m, nn.ModuleList) and len(m) and attends(m[0])]
    if not lists:
        return Tower(convolutions(module), Matrices(), 0, 0, 0, 0, 0)
    blocks = max(lists, key=len)
    inside = {id(m) for block in blocks for m in block.modules()}
    names = {name for name, m in module.named_modules() if id(m) in inside}
    whole = getattr(vision, "fullatt_block_indexes", None)
    width = int(getattr(vision, "embed_dim", None) or vision.hidden_size)
    dim = getattr(vision, "head_dim", None)
    return Tower(
        patchify=matrices(module, lambda name: name not in names and "merger" not in name and "head" not in name),
        blocks=matrices(module, lambda name: name in names),
        depth=len(blocks),
        width=int(dim) * int(vision.num_attention_heads) if isinstance(dim, int) and dim else width,
        cls=int(has_cls(config)),
        window=0 if whole is None else vision.window_size // first(vision.patch_size),
        whole=len(blocks) if whole is None else len(whole),
    )


def convolutions(module: nn.Module, side: int = 256) -> Matrices:
    """Count a tower of convolutions alone by running it once without values; its rows are pixels."""
    pixels = torch.empty(1, 3, side, side, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        deepcopy(module).to("meta")(pixels)
    stored = sum(p.numel() for p in module.parameters())
    return Matrices(counter.get_total_flops() / 2 / side**2, stored)


def attends(block: nn.Module) -> bool:
    """Return whether a block of a tower has attention."""
    return attention_of(block) is not None or any("attn" in n or "attention" in n for n, _ in block.named_children())

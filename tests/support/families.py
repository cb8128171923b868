"""Tiny random vision-language models, one row per family, and prompts for them. No network, no weights.

A prompt row is a list of segments: an int n stands for n text tokens, `Image(k)` and `Video(k)` for the k-th size of
the family. Weights have a standard deviation of 0.15, large enough that a wrong mask shows in the logits.
"""

# ruff: noqa: C408

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers as hf
from torch import Generator, Tensor, nn

from tests.support import tiny, tiny_qwen
from tests.support.tiny import BOS, END, EOS, IMAGE, PAD, SPECIAL, START, TEXT_IDS, VIDEO

LAYERS = 6
GREEDY: dict[str, Any] = dict(do_sample=False, suppress_tokens=SPECIAL)


@dataclass(frozen=True)
class Image:
    size: int = 0


@dataclass(frozen=True)
class Video:
    size: int = 0


Row = Sequence["int | Image | Video"]


@dataclass(frozen=True)
class Batch:
    """Model inputs and what the tests know about them: which tokens are visual and to which span they belong."""

    inputs: dict[str, Tensor]
    span: Tensor  # Long[B, L]: running number of the span inside its row, -1 for text and padding

    @property
    def ids(self) -> Tensor:
        return self.inputs["input_ids"]

    @property
    def real(self) -> Tensor:  # Bool[B, L], False on padding
        return self.inputs["attention_mask"].bool()

    @property
    def visual(self) -> Tensor:
        return self.span >= 0

    @property
    def ordinal(self) -> Tensor:  # Long[B, L]: number of a visual token inside its row (meaningless elsewhere)
        return self.visual.long().cumsum(1) - 1

    @property
    def total(self) -> Tensor:  # Long[B]: visual tokens of each row
        return self.visual.sum(1)

    def __call__(self) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in self.inputs.items()}

    @property
    def untold(self) -> Batch:  # the same without its mask: padding is told by ids alone
        return Batch({name: value for name, value in self.inputs.items() if name != "attention_mask"}, self.span)


@dataclass(frozen=True)
class Family:
    name: str
    model: str  # class in transformers, without the ForConditionalGeneration
    config: Callable[[], Any]
    pixels: Callable[[list[list[Any]], Generator], dict[str, Tensor]]
    images: tuple[Any, ...] = (None,)
    layout: Callable[[Any, int], list[int]] | None = None  # (size, images in the row) -> ids; from `spans` if None
    spans: Callable[[Any, int], list[int]] | None = None  # visual tokens of each span of an image; one span if None
    framed: bool = False  # start and end tokens around an image, where the layout follows from the spans
    videos: tuple[Any, ...] = ()
    video_layout: Callable[[Any], list[int]] | None = None
    frames: Callable[[list[list[Any]], Generator], dict[str, Tensor]] | None = None
    rope: str = "1d"  # "1d" | "mrope"
    hybrid: bool = False  # some layers are recurrent, so masking a column does not remove a token
    centred_norms: bool = False  # norms scale by 1 + weight
    prune_layers: tuple[int, int, int] = (0, 2, 4)  # gemma4: not beyond the first layer whose keys are shared
    mend: Callable[[Any], None] | None = None  # what a release broke in the model itself
    extra: bool = False  # not among the families the library promises
    example: str = ""  # a Hub id of this architecture, where the described family names one of a sibling

    @property
    def model_class(self) -> Any:
        heads = (getattr(hf, self.model + head, None) for head in ("ForConditionalGeneration", "ForCausalLM"))
        return next((head for head in heads if head is not None), None)

    @property
    def positions(self) -> tuple[str, ...]:
        return ("keep", "pospad", "repack") if self.rope == "1d" else ("keep", "pospad")

    def build(self, attn_implementation: str = "sdpa", seed: int = 0) -> nn.Module:
        """The pristine model, shared by all tests of a session: deep-copy it before changing it."""
        return _build(self, attn_implementation, seed)

    def fresh(self) -> nn.Module:
        """The same model, made anew: transformers' own hooks of a first run do not pickle."""
        return _build.__wrapped__(self, "sdpa", 0)

    def inputs(self, rows: Sequence[Row], seed: int = 0, padding_side: str = "left") -> Batch:
        rng = torch.Generator().manual_seed(seed)
        sequences = [self._sequence(row, rng) for row in rows]
        width = max(len(ids) for ids, _ in sequences)
        ids, span = torch.full((len(rows), width), PAD), torch.full((len(rows), width), -1)
        mask = torch.zeros(len(rows), width, dtype=torch.long)
        for r, (row_ids, row_span) in enumerate(sequences):
            place = slice(width - len(row_ids), width) if padding_side == "left" else slice(0, len(row_ids))
            ids[r, place], span[r, place], mask[r, place] = torch.tensor(row_ids), torch.tensor(row_span), 1
        out = dict(input_ids=ids, attention_mask=mask, **self.token_types(ids))
        for kind, sizes, make in ((Image, self.images, self.pixels), (Video, self.videos, self.frames)):
            wanted = [[sizes[s.size % len(sizes)] for s in row if isinstance(s, kind)] for row in rows if sizes]
            if any(wanted) and make is not None:
                out.update(make(wanted, rng))
        return Batch(out, span)

    def token_types(self, ids: Tensor) -> dict[str, Tensor]:
        """The token types a processor would send along, for the classes and versions that take them."""
        takes = inspect.signature(self.model_class.forward).parameters
        kinds = (ids == IMAGE).long() + 2 * (ids == VIDEO).long()
        if "mm_token_type_ids" in takes:
            return dict(mm_token_type_ids=kinds)
        if "token_type_ids" in takes:
            return dict(token_type_ids=kinds if self.name == "gemma3" else torch.zeros_like(kinds))
        return {}

    def padded_with_text(self, rows: Sequence[Row]) -> list[Row]:
        """The same prompts, their last text segment grown until all rows are equally long: no padding is left."""
        lengths = [len(self._sequence(row, torch.Generator())[0]) for row in rows]
        return [[*row[:-1], row[-1] + max(lengths) - n] for row, n in zip(rows, lengths, strict=True)]

    def segment(self, segment: Any, in_row: int) -> tuple[list[int], list[int]]:
        """Ids of an image or video and the visual tokens of each of its spans."""
        if isinstance(segment, Video):
            assert self.video_layout is not None, f"{self.name} takes no video"
            ids = self.video_layout(self.videos[segment.size % len(self.videos)])
            return ids, [ids.count(VIDEO) + ids.count(IMAGE)]  # Molmo2 has one placeholder for both
        size = self.images[segment.size % len(self.images)]
        spans = self.spans(size, in_row) if self.spans else []
        ids = self.layout(size, in_row) if self.layout else [IMAGE] * sum(spans)
        return [START, *ids, END] if self.framed else ids, spans or [ids.count(IMAGE)]

    def _sequence(self, row: Row, rng: Generator) -> tuple[list[int], list[int]]:
        ids, span, spans = [BOS], [-1], 0
        in_row = sum(isinstance(s, Image) for s in row)
        for segment in row:
            if isinstance(segment, int):
                ids += torch.randint(*TEXT_IDS, (segment,), generator=rng).tolist()
                span += [-1] * segment
                continue
            new, counts = self.segment(segment, in_row)
            numbers = iter([spans + i for i, count in enumerate(counts) for _ in range(count)])
            span += [next(numbers) if token in (IMAGE, VIDEO) else -1 for token in new]
            ids += new
            spans += len(counts)
        return ids, span


@functools.cache
def _build(family: Family, attn_implementation: str, seed: int) -> nn.Module:
    config = family.config()
    plain = not getattr(family.model_class, "_supports_sdpa", True)
    config._attn_implementation = "eager" if plain else attn_implementation
    if family.name == "fast_vlm":  # its convolutional tower knows no attention implementation
        config.vision_config._attn_implementation_internal = None
    torch.manual_seed(seed)
    model = family.model_class(config)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim >= 2:
                p.normal_(0, 0.15)
            elif "norm" in name.lower() and name.endswith("weight"):
                p.normal_(0.0 if family.centred_norms else 1.0, 0.1)
            else:
                p.normal_(0, 0.05)
    if family.mend is not None:
        family.mend(model)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = EOS, PAD
    return model.eval()


def _count(n: int) -> Callable[[Any, int], list[int]]:
    return lambda size, in_row: [n]


def _lfm2_cache_has_layers() -> bool:
    """Up to some release after 5.0 LFM2 had a cache of its own kind, which cannot be pruned."""
    from transformers.models.lfm2 import modeling_lfm2

    return not hasattr(modeling_lfm2, "Lfm2HybridConvCache")


_QWEN: dict[str, Any] = dict(
    images=((1, 8, 8), (1, 6, 10), (1, 4, 8)),
    spans=tiny_qwen.qwen_spans,
    framed=True,
    pixels=tiny_qwen.qwen_pixels,
    videos=((2, 4, 6), (3, 4, 4)),
    video_layout=tiny_qwen.qwen_video,
    frames=tiny_qwen.qwen_frames,
    rope="mrope",
)
_QWEN3 = dict(_QWEN, video_layout=tiny_qwen.qwen3_video)
_TILES: dict[str, Any] = dict(
    images=(1, 3, 2), pixels=tiny.idefics_pixels, layout=tiny.idefics_image, spans=tiny.tile_spans
)

FAMILIES = {
    row.name: row
    for row in (
        Family("qwen2_vl", "Qwen2VL", tiny_qwen.qwen2_vl, **_QWEN),
        Family("qwen2_5_vl", "Qwen2_5_VL", tiny_qwen.qwen2_5_vl, **_QWEN),
        Family("qwen3_vl", "Qwen3VL", tiny_qwen.qwen3_vl, **_QWEN3),
        Family("llava", "Llava", tiny.llava, tiny.square_pixels(56), spans=_count(16)),
        Family(
            "llava_next",
            "LlavaNext",
            tiny.llava_next,
            tiny.tiled_pixels(28, 5),
            images=((56, 56), (28, 56), (56, 28)),
            spans=tiny.llava_next_spans,
        ),
        Family(
            "llava_onevision",
            "LlavaOnevision",
            tiny.llava_onevision,
            tiny.tiled_pixels(42, 3),
            images=((42, 84), (84, 42)),
            spans=tiny.onevision_spans,
            videos=(2,),
            video_layout=tiny.onevision_video,
            frames=tiny.onevision_frames,
        ),
        Family(
            "internvl",
            "InternVL",
            tiny.internvl,
            tiny.internvl_pixels,
            images=(1, 3, 2),
            spans=tiny.tile_spans,
            framed=True,
        ),
        Family("idefics3", "Idefics3", tiny.idefics3, **_TILES),
        Family("smolvlm", "SmolVLM", tiny.smolvlm, **_TILES),
        Family(
            "gemma3", "Gemma3", tiny.gemma3, tiny.square_pixels(84), spans=_count(9), framed=True, centred_norms=True
        ),
        Family(
            "paligemma",
            "PaliGemma",
            tiny.paligemma,
            tiny.square_pixels(56),
            spans=_count(16),
            centred_norms=True,
            extra=True,
        ),
        Family(
            "mistral3",
            "Mistral3",
            tiny.mistral3,
            tiny.mistral3_pixels,
            layout=tiny.mistral3_image,
            images=((112, 112), (56, 112), (84, 56)),
            extra=True,
        ),
        Family("fast_vlm", "FastVlm", tiny.fast_vlm, tiny.square_pixels(64), spans=_count(16), extra=True),
        Family("qwen3_5", "Qwen3_5", tiny_qwen.qwen3_5, hybrid=True, centred_norms=True, extra=True, **_QWEN3),
        Family(
            "lfm2_vl",
            "Lfm2Vl",
            tiny.lfm2_vl,
            tiny.lfm2_pixels,
            images=((8, 8), (4, 8), (6, 6)),
            spans=tiny.lfm2_spans,
            hybrid=True,
            extra=True,
        ),
        Family(
            "gemma4",
            "Gemma4",
            tiny.gemma4,
            tiny.gemma4_pixels,
            spans=_count(16),
            framed=True,
            centred_norms=True,
            prune_layers=(0, 1, 2),
            extra=True,
        ),
    )
    if row.model_class is not None and (row.name != "lfm2_vl" or _lfm2_cache_has_layers())
}
MASKABLE = [f for f in FAMILIES.values() if not f.hybrid]  # a mask can remove a token
HYBRID = [f for f in FAMILIES.values() if f.hybrid]

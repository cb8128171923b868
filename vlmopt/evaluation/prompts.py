"""Turn samples into batches of model inputs: mixed sizes, ragged prompts, padding on the left."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ..frames import load_video
from ..loading import Loaded
from ..media import load_image
from ..metrics.answers import LETTERS
from ..prompt import interleaved, video_prompt
from .data import NEW_TOKENS, Sample

# What a model is told about coordinates where the data brings an instruction alone, by the units of its answers.
POINT_PROMPTS = {
    "pixels": 'Where is this in the image: "{question}"? Answer with the point (x, y) in pixels, and nothing else.',
    "unit": 'Where is this in the image: "{question}"? Answer with the point (x, y) as fractions from 0 to 1, and '
    "nothing else.",
    "hundred": 'Where is this in the image: "{question}"? Answer with the point (x, y) in percent of its width and '
    "height, and nothing else.",
    "loc": "detect {question}",
    "thousand": 'Where is this in the image: "{question}"? Answer with the point (x, y) on a scale from 0 to 1000, '
    "and nothing else.",
}
POINT_PROMPTS["thousand-yx"] = POINT_PROMPTS["thousand"].replace("(x, y)", "[y, x]")
POINT_PROMPTS["resized"] = POINT_PROMPTS["pixels"]
BOX_PROMPTS = {
    name: text.replace("Where is this", "Which box is this")
    .replace("the point (x, y)", "its corners [x0, y0, x1, y1]")
    .replace("the point [y, x]", "its corners [y0, x0, y1, x1]")
    for name, text in POINT_PROMPTS.items()
}
CHOOSE = "Answer with the option's letter from the given choices directly."


@dataclass(frozen=True)
class Batch:
    """Samples that are asked in one call, and the model inputs, on the CPU; sizes are (width, height)."""

    samples: tuple[Sample, ...]
    inputs: dict[str, Any] = field(repr=False)
    new_tokens: int
    sizes: tuple[tuple[int, int] | None, ...]
    resized: tuple[tuple[int, int] | None, ...]

    @property
    def bytes(self) -> int:
        return sum(v.numel() * v.element_size() for v in self.inputs.values() if isinstance(v, torch.Tensor))


@dataclass(frozen=True, kw_only=True)
class Asking:
    """How samples become prompts.

    Attributes:
        prompt: template; {question} stands for the sample's own, a template without it is asked of every sample.
        max_new_tokens: None for what the kind of a sample needs.
        run: images of samples may lie relative to it.
    """

    loaded: Loaded
    run: Path
    prompt: str = "{question}"
    max_new_tokens: int | None = None

    def limit(self, sample: Sample) -> int:
        return self.max_new_tokens or NEW_TOKENS[sample.kind]

    def question(self, sample: Sample) -> str:
        """Return the words put to the model; the choices of a multiple choice get letters."""
        text = self.prompt.replace("{question}", sample.question)
        options = [f"{letter}. {words}" for letter, words in zip(LETTERS, sample.choices, strict=False)]
        return "\n".join([text, *options, CHOOSE]) if options else text

    def plan(self, samples: Sequence[Sample], size: int) -> list[list[Sample]]:
        """Sort samples into batches, in their order; those with images and one limit of new tokens go together.

        A video is alone. The plan depends on nothing but the samples, so that every policy and every start of a run has
        the same batches.
        """
        groups: dict[tuple[int, bool], list[Sample]] = {}
        found: list[list[Sample]] = []
        for sample in samples:
            if sample.videos:
                found.append([sample])
                continue
            group = groups.setdefault((self.limit(sample), bool(sample.images)), [])
            group.append(sample)
            if len(group) == size:
                found.append(groups.pop((self.limit(sample), bool(sample.images))))
        found += groups.values()
        place = {sample.id: number for number, sample in enumerate(samples)}
        return sorted(found, key=lambda batch: place[batch[0].id])

    def prepare(self, samples: Sequence[Sample]) -> Iterator[Batch | tuple[Sample, str]]:
        """Yield one batch, or more where a sample spoils it: that one comes back with what is wrong."""
        good, opened = [], {}
        for sample in samples:
            try:
                opened[sample.id] = self.images(sample)
                good.append(sample)
            except (OSError, ValueError) as error:
                yield sample, str(error)
        if good:
            yield from self._batch(good, opened)

    def images(self, sample: Sample) -> list[Image.Image]:
        return [load_image(self.run / path).image for path in sample.images]

    def _batch(
        self, samples: Sequence[Sample], opened: Mapping[str, list[Image.Image]]
    ) -> Iterator[Batch | tuple[Sample, str]]:
        images = [opened[sample.id] for sample in samples]
        try:
            inputs, shown = self._inputs(samples, images)
        except Exception as error:  # processors raise whatever their arithmetic meets in an odd image
            if len(samples) == 1:
                yield samples[0], f"{type(error).__name__}: {error}"
                return
            middle = len(samples) // 2
        else:
            yield Batch(
                tuple(samples),
                inputs,
                self.limit(samples[0]),
                tuple(own[0].size if own else None for own in images),
                self._resized(inputs, shown),
            )
            return
        yield from self._batch(samples[:middle], opened)
        yield from self._batch(samples[middle:], opened)

    def _inputs(
        self, samples: Sequence[Sample], images: Sequence[Sequence[Image.Image]]
    ) -> tuple[dict[str, Any], list[list[int]]]:
        """Return the model inputs, and for each sample which of its images stand in the prompt, in order."""
        processor = self.loaded.processor
        if samples[0].videos:
            sizes = processor.image_processor
            patch, merge = getattr(sizes, "patch_size", 14), getattr(sizes, "merge_size", 2)
            videos = [load_video(self.run / path, patch_size=patch, merge_size=merge) for path in samples[0].videos]
            return video_prompt(processor, self.loaded.model, self.question(samples[0]), *videos), [[]]
        asked = [interleaved(processor, len(s.images), self.question(s)) for s in samples]
        text, shown = [words for words, _ in asked], [order for _, order in asked]
        nested = [[own[number] for number in order] for own, order in zip(images, shown, strict=True)]
        found = processor(
            text=text, images=nested if images[0] else None, return_tensors="pt", padding=True, padding_side="left"
        )
        return dict(found), shown

    def _resized(self, inputs: Mapping[str, Any], shown: Sequence[Sequence[int]]) -> tuple[tuple[int, int] | None, ...]:
        """Return the size of each sample's first image behind the processor, where that says so (Qwen-VL)."""
        grids, patch = inputs.get("image_grid_thw"), getattr(self.loaded.processor.image_processor, "patch_size", None)
        if grids is None or patch is None or len(grids) != sum(map(len, shown)):
            return (None,) * len(shown)
        sizes = iter([(int(w) * patch, int(h) * patch) for _, h, w in grids.tolist()])
        own = [dict(zip(order, sizes, strict=False)) for order in shown]
        return tuple(one.get(0) for one in own)

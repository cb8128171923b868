"""Turn the outcome of a call into records of its samples, with the maps that a report will draw."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..prompt import as_seen
from ..reporting import Report
from .data import Sample
from .generation import Output
from .maps import save_image, save_maps
from .prompts import Asking, Batch
from .records import DENSE, Record, file_name
from .scoring import Marking, Said, grade


@dataclass(kw_only=True)
class Recorder:
    """Makes records.

    Attributes:
        place: sample -> its number in the data.
        maps: policy -> how many maps may still be saved, of samples that it answers otherwise than dense.
        dense: sample -> dense answer.
    """

    asking: Asking
    marking: Marking
    place: Mapping[str, int]
    maps: dict[str, int]
    dense: dict[str, str | None] = field(default_factory=dict)

    def answered(self, policy: str, batch: Batch, out: Output, memory: int | None) -> list[Record]:
        """Return the records of a call that came to its end; save maps."""
        records = [self._answer(policy, batch, index, out, memory) for index in range(len(batch.samples))]
        if policy == DENSE:
            self.dense |= {record.id: record.prediction for record in records}
        return records

    def failed(self, policy: str, sample: Sample, why: str) -> Record:
        """Return the record of a sound sample on which a policy failed: wrong, where something can be right."""
        mark = grade(sample, None, self.marking)
        return replace(self.unasked(policy, sample, why), correct=mark.correct, metrics=mark.metrics)

    def unasked(self, policy: str, sample: Sample, why: str) -> Record:
        """Return the record of a sample that cannot be put to any model: nothing is marked."""
        return replace(self._record(policy, sample), error=why)

    def _answer(self, policy: str, batch: Batch, index: int, out: Output, memory: int | None) -> Record:
        sample, told, text = batch.samples[index], out.report, out.texts[index]
        said = Said(text=text, ended=out.ended[index], size=batch.sizes[index], resized=batch.resized[index])
        mark, counted, record = grade(sample, said, self.marking), told.samples[index], self._record(policy, sample)
        kept, seen = self._map(policy, sample, text, told, index)
        return replace(
            record,
            prediction=text,
            correct=mark.correct,
            metrics=mark.metrics,
            extra={**record.extra, **mark.extra},
            tokens={
                "prompt": counted["prompt_tokens"],
                "visual": counted["visual_tokens"],
                "kept": counted["visual_tokens_kept"],
                "layer_average": counted["layer_average"],
            },
            ms=told.ms,
            decode_tokens_per_s=told.decode_tokens_per_s,
            memory_bytes=memory,
            kv_bytes=told.kv_cache_bytes or None,
            new_tokens=out.lengths[index],
            batch=len(batch.samples),
            call=batch.samples[0].id,
            map=kept,
            seen=seen,
        )

    def _record(self, policy: str, sample: Sample) -> Record:
        optional: Iterable[tuple[str, Any, Any]] = (
            ("box", sample.box, list),
            ("choices", sample.choices, list),
            ("objects", sample.objects, list),
            ("images", sample.images[1:] and sample.images, list),
            ("video", sample.videos[:1], "".join),
            ("videos", sample.videos[1:] and sample.videos, list),
        )
        return Record(
            id=sample.id,
            index=self.place[sample.id],
            policy=policy,
            question=self.asking.question(sample),
            answer=list(sample.answer) if isinstance(sample.answer, tuple) else sample.answer,
            prediction=None,
            category=sample.category,
            kind=sample.kind,
            correct=None,
            image=sample.images[0] if sample.images else None,
            picture=sample.picture or sample.id,
            extra={**sample.extra, **{name: kind(value) for name, value, kind in optional if value}},
        )

    def _map(self, policy: str, sample: Sample, text: str, told: Report, index: int) -> tuple[str | None, str | None]:
        """Save what was kept, and the image as the tower sees it; return paths relative to the run."""
        maps = told.maps(index)
        if policy == DENSE or self.maps[policy] < 1 or not maps or text == self.dense.get(sample.id):
            return None, None
        self.maps[policy] -= 1
        run, name = self.asking.run, file_name(sample.id)
        kept, seen = Path("kept") / file_name(policy) / f"{name}.npz", Path("kept") / "seen" / f"{name}.webp"
        save_maps(run / kept, maps)
        if len(sample.images) != 1:
            return kept.as_posix(), None
        save_image(run / seen, as_seen(self.asking.loaded.processor, self.asking.images(sample)[0]))
        return kept.as_posix(), seen.as_posix()


def maps_left(run: Path, policies: Iterable[str], limit: int, processes: int) -> dict[str, int]:
    """Return how many maps this process may save per policy, less those of an earlier start."""
    there = {name: len(list((run / "kept" / file_name(name)).glob("*.npz"))) for name in policies}
    return {name: -(-max(0, limit - count) // processes) for name, count in there.items()}

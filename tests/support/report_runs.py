"""A finished run as `vlmopt eval` leaves it, made without a model: 28 samples, three policies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from vlmopt.evaluation.maps import save_image, save_maps
from vlmopt.evaluation.records import Record, Writer, file_name, part
from vlmopt.evaluation.summary import summarize
from vlmopt.reporting import VisualMap
from vlmopt.synthetic import scene

EVIL = "</script><script>window.caught = 1</script><img src=x onerror='window.caught = 1'>"
POLICIES = ("dense", "half", "a|b <i>")
MAPPED = (1, 3, 7, 24, 25)  # samples with maps; drawing them takes its time


def request(policies: tuple[str, ...], samples: int) -> dict[str, Any]:
    return {
        "format": 1, "model": "some/model", "dtype": "float32", "data": ["data.jsonl"], "data_format": "manifest",
        "digest": "0123", "samples": samples, "limit": None, "seed": 0, "batch_size": 4, "prompt": "{question}",
        "decoding": {"do_sample": False, "max_new_tokens": {"yes_no": 16}}, "parser": {"yes_no": "reference"},
        "notes": [], "policies": {name: {"format": 1, "seed": 0} for name in policies},
    }  # fmt: skip


ENVIRONMENT = {
    "format": 1, "date": "2026-01-02T03:04:05+00:00", "command": ["vlmopt", "eval"], "vlmopt": "0", "commit": None,
    "python": "3", "packages": {"torch": "2"}, "platform": "some", "device": "a device", "processes": 1, "threads": 1,
    "model": {"type": "some", "parameters": 1000, "dtype": "float32", "attention": "sdpa"},
    "starts": [{"date": "2026-01-02T03:04:05+00:00", "command": ["vlmopt", "eval", "--out", "a b"]}],
}  # fmt: skip


def record(sample: int, policy: str, **changes: Any) -> Record:
    """A question about presence: dense is right on all, half wrong on every fourth, the third on every second."""
    step = {"dense": 1000, "half": 4}.get(policy, 2)
    right = sample % step != step - 1
    share = {"dense": 1.0, "half": 0.5}.get(policy, 0.25)
    ms = {"vision": 20.0, "prefill": 80.0 * share, "scoring": None if share == 1 else 3.0, "decode": 10.0}
    ms |= {"ttft": 103 + 80.0 * (share - 1), "total": 115 + 80.0 * (share - 1)}
    facts: dict[str, Any] = {
        "question": f"Is there a thing, number {sample}?", "answer": "yes", "prediction": "yes" if right else "no",
        "category": ("random", "popular")[sample % 2], "kind": "yes_no", "correct": right, "picture": str(sample // 2),
        "metrics": {"yes": right, "unparsable": False}, "image": f"pictures/{sample // 2}.png",
        "tokens": {"prompt": 80, "visual": 64, "kept": 64 * share, "layer_average": 64 * (1 + share) / 2},
        "ms": ms, "decode_tokens_per_s": 50.0, "memory_bytes": 2**30, "new_tokens": 2, "batch": 4, "call": str(sample),
    }  # fmt: skip
    return Record(id=f"q/{sample}", index=sample, policy=policy, **{**facts, **changes})


def write_run(
    run: Path,
    rows: list[Record],
    policies: tuple[str, ...] = POLICIES,
    samples: int | None = None,
    lines: dict[str, Any] | None = None,
) -> Path:
    """A run directory as a run leaves it."""
    run.mkdir(parents=True, exist_ok=True)
    count = len({row.id for row in rows}) if samples is None else samples
    (run / "run.json").write_text(json.dumps(request(policies, count) | {"lines": lines or {}}))
    (run / "environment.json").write_text(json.dumps(ENVIRONMENT))
    writer = Writer(part(run, 0))
    writer.append(rows)
    writer.close()
    summarize(run)
    return run


def swept(run: Path, ratios: tuple[float, ...] = (0.1, 0.25, 0.5), samples: int = 24) -> Path:
    """A sweep of two methods with its controls; the method that cuts between layers has more tokens at a ratio."""
    rows, told = [record(sample, "dense") for sample in range(samples)], {}
    for number, line in enumerate(("fastv:layer=2", "div_prune", "random", "uniform")):
        for ratio in ratios:
            name = f"{line}@{ratio:g}"
            told[name] = [line, ratio]
            average = 64 * (ratio + (1 - ratio) / 4 if number == 0 else ratio)
            tokens = {"prompt": 80, "visual": 64, "kept": 64 * ratio, "layer_average": average}
            for sample in range(samples):
                right = sample % 12 >= 2 + 2 * number - 4 * ratio
                said = {"prediction": "yes" if right else "no", "correct": right}
                marks = {"yes": right, "unparsable": False}
                rows.append(record(sample, name, tokens=tokens, metrics=marks, image=None, **said))
    return write_run(run, rows, ("dense", *told), lines=told)


def whole(run: Path) -> Path:
    """Questions, clicks, captions, an error, a text that would like to be code, and maps of what changed."""
    rows = [record(sample, policy) for sample in range(24) for policy in POLICIES]
    for policy, text in zip(POLICIES, ("yes", "no", EVIL), strict=True):
        rows.append(record(24, policy, question=EVIL, prediction=text, correct=text == "yes"))
        box = {"box": [20, 20, 60, 50], "point": [30 + len(text), 30]}
        click = {"kind": "click", "answer": None, "extra": box, "category": "mobile/icon", "image": "pictures/0.png"}
        rows.append(record(25, policy, metrics={"unparsable": False}, prediction=f"({len(text)}, 1)", **click))
        false = POLICIES.index(policy)
        marks = {"words": 9, "cut_off": False, "said": 3, "false": false, "names": 3, "found": 3 - false, "there": 3}
        said = "a red square, a blue star and a green " + ("circle", "wall", "sea")[false]
        caption = {"kind": "caption", "answer": None, "correct": None, "category": "", "extra": {"objects": ["star"]}}
        rows.append(record(26, policy, prediction=said, metrics=marks, image="pictures/1.png", **caption))
    lost = {"prediction": None, "tokens": None, "ms": None, "image": "gone.png"}
    rows += [record(27, policy, error="image not found: <gone.png>", correct=None, **lost) for policy in POLICIES]
    (run / "pictures").mkdir(parents=True)
    for number_ in range(13):
        scene(number_, (112, 112)).image.save(run / "pictures" / f"{number_}.png")
    return write_run(run, [with_map(run, row) for row in rows])


def with_map(run: Path, row: Record) -> Record:
    if row.policy == "dense" or row.error or row.index not in MAPPED:
        return row
    coords = torch.tensor([[0, y, x] for y in range(8) for x in range(8)])
    kept = torch.arange(64) < int(row.tokens["kept"])
    none = torch.zeros(64, dtype=torch.bool)
    path, seen = f"kept/{file_name(row.policy)}/{row.index}.npz", f"kept/seen/{row.index}.webp"
    save_maps(run / path, [VisualMap(0, "image", (1, 8, 8), coords, kept, none, none, torch.arange(64), None)])
    save_image(run / seen, scene(row.index // 2, (112, 112)).image)
    return Record(**{**row.__dict__, "map": path, "seen": seen})

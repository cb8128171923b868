"""Write generated images as files, with a manifest of their questions that `vlmopt eval` reads."""

from __future__ import annotations

import json
from pathlib import Path

from tqdm import tqdm

from . import scene, screen


def write(out: Path, count: int, seed: int, questions: int, size: tuple[int, int], family: str) -> Path:
    """Write `count` PNG files and `manifest.jsonl`, one line per question; return the manifest's path."""
    out.mkdir(parents=True, exist_ok=True)
    manifest = out / "manifest.jsonl"
    with manifest.open("w", encoding="utf-8") as lines:
        for number in tqdm(range(seed, seed + count), desc="images"):
            draw = {"scene": scene, "screen": screen, "both": (scene, screen)[number % 2]}[family]
            world = draw(number, size, questions=questions)
            name = f"{world.family}-{number:08d}.png"
            world.image.save(out / name)
            for index, question in enumerate(world.questions):
                entry = {
                    "id": f"{world.family}-{number:08d}-{index:02d}",
                    "image": name,
                    "question": question.text,
                    "answer": question.answer,
                    "kind": question.kind,
                    "box": question.box,
                }
                lines.write(json.dumps(entry) + "\n")
    return manifest

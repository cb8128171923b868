"""Write generated pictures and their questions: `python -m vlmopt.synthetic --out DIR --count N --seed S`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from tqdm import tqdm

from . import scene, screen


def write(out: Path, count: int, seed: int, questions: int, size: tuple[int, int], family: str) -> Path:
    """Write `count` PNG files and `manifest.jsonl`, one line per question; returns the manifest's path."""
    out.mkdir(parents=True, exist_ok=True)
    manifest = out / "manifest.jsonl"
    with manifest.open("w", encoding="utf-8") as lines:
        for number in tqdm(range(seed, seed + count), desc="pictures"):
            draw = {"scene": scene, "screen": screen, "both": (scene, screen)[number % 2]}[family]
            world = draw(number, size, questions=questions)
            name = f"{world.family}-{number:08d}.png"
            world.image.save(out / name)
            for index, question in enumerate(world.questions):
                row = {
                    "id": f"{world.family}-{number:08d}-{index:02d}",
                    "image": name,
                    "question": question.text,
                    "answer": question.answer,
                    "kind": question.kind,
                    "box": question.box,
                }
                lines.write(json.dumps(row) + "\n")
    return manifest


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m vlmopt.synthetic", description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=100, help="pictures")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first picture; the others follow")
    parser.add_argument("--questions", type=int, default=8, help="at most so many per picture")
    parser.add_argument("--size", type=int, nargs=2, default=(224, 224), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--family", choices=("scene", "screen", "both"), default="both")
    options = parser.parse_args(arguments)
    if options.count < 1:
        parser.error(f"--count must be 1 or more, got {options.count}")
    print(write(options.out, options.count, options.seed, options.questions, tuple(options.size), options.family))


if __name__ == "__main__":
    main()

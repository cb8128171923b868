"""Measure a checkpoint on fresh images through ordinary `generate`: `python -m vlmopt.training.evaluate`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from vlmopt.checkpoints import load_checkpoint
from vlmopt.metrics import wilson
from vlmopt.prompt import chat
from vlmopt.synthetic import Question, World
from vlmopt.synthetic.asked import SIZES, SIZES_OF, one_of_each_kind


def answer_all(model: Any, processor: Any, asked: Sequence[tuple[World, Question]], batch: int = 16) -> list[str]:
    """Return greedy answers through the processor's chat template, one question per prompt."""
    answers = []
    for start in tqdm(range(0, len(asked), batch), disable=len(asked) < 200):
        part = asked[start : start + batch]
        prompts = [chat(processor, "image", 1, question.text) for _, question in part]
        inputs = processor(text=prompts, images=[[world.image] for world, _ in part], return_tensors="pt", padding=True)
        with torch.inference_mode():
            out = model.generate(**inputs, max_new_tokens=40, do_sample=False)
        texts = processor.tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        answers += [text.strip() for text in texts]
    return answers


def correct(question: Question, answer: str) -> bool:
    """Return whether coordinates fall inside the box, or anything else matches word for word."""
    if question.kind not in ("click", "point") or question.box is None:
        return answer == question.answer
    parts = answer.strip("()").split(",")
    if len(parts) != 2 or not all(part.strip().isdigit() for part in parts):
        return False
    x, y = (int(part) for part in parts)
    x0, y0, x1, y1 = question.box
    return x0 <= x < x1 and y0 <= y < y1


def measure(model: Any, processor: Any, images: int, batch: int = 16) -> dict[str, dict[str, Any]]:
    """Return marks by "family kind", and for presence also by right answer."""
    sizes = SIZES_OF.get(model.config.model_type, SIZES)
    asked = sorted(one_of_each_kind(images, sizes=sizes), key=lambda pair: (pair[0].size, pair[1].kind))
    groups: dict[str, list[bool]] = {}
    for (world, question), answer in zip(asked, answer_all(model, processor, asked, batch), strict=True):
        names = [f"{world.family} {question.kind}"]
        if question.kind == "presence":
            names.append(f"{world.family} presence, right answer {question.answer}")
        for name in names:
            groups.setdefault(name, []).append(correct(question, answer))
    return {
        name: {"accuracy": sum(marks) / len(marks), "interval": wilson(sum(marks), len(marks)), "of": len(marks)}
        for name, marks in sorted(groups.items())
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m vlmopt.training.evaluate", description=__doc__)
    parser.add_argument("--checkpoint", default="tiny-qwen", help="bundled name or directory")
    parser.add_argument("--images", type=int, default=400, help="scenes, and as many screens")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args(arguments)
    figures = measure(*load_checkpoint(options.checkpoint), options.images)
    for name, row in figures.items():
        low, high = row["interval"]
        print(f"{name:36s} {100 * row['accuracy']:5.1f} %  ({100 * low:.1f} to {100 * high:.1f})  of {row['of']}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

r"""Does a second look point at what is asked about, and is the second answer better? On scenes with known objects.

Every scene is asked for the colour of a shape that it has once. Pointing: the visual token of highest score lies in
that object's box, a cell around it allowed, layer by layer, with the general instruction divided out and without.
Answers: about the whole image, and about images masked by both looks, by a window at random of the same size as that of
`relative` (the control that costs nothing), and by the object's own box. A small model that was trained on whole scenes
gains nothing by seeing less; figures say whether it loses, and nothing about real models.

    python benchmarks/second_look.py --checkpoint tiny-qwen
    python benchmarks/tables.py --write                # the tables of the docs
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

import vlmopt
from common import append
from vlmopt.attention_fix.layers import layer_numbers
from vlmopt.looking.focus import GENERAL, focused, look_of
from vlmopt.looking.hearing import Heard, hear
from vlmopt.looking.looks import ratio
from vlmopt.looking.places import places
from vlmopt.looking.refine import masked
from vlmopt.prompt import chat
from vlmopt.synthetic import World, scene
from vlmopt.synthetic.asked import SIZES, SIZES_OF

FIRST_SEED = 630_000_000  # training uses 1e9 and up, calibration 4e8, the model cards 5e8, pruning 6.11e8, POPE 6.2e8
BLOCK_SEEDS = 100_000
NEW_TOKENS = 8  # an answer here has two; no more of the general instruction is compared with
CELL = 14  # pixels around an object that count as pointing at it
Box = tuple[int, int, int, int]


def asked(count: int, model_type: str, seed: int) -> Iterator[tuple[World, str, str, Box]]:
    """Yield (scene, question, answer, box of the object) about a shape that a scene of three or more has once."""
    sizes, found = SIZES_OF.get(model_type, SIZES), 0
    while found < count:
        world = scene(seed, sizes[seed % len(sizes)], questions=40)
        seed += 1
        once = [q for q in world.questions if q.kind == "colour"]
        things = [t for q in once[:1] for t in world.objects if f"the {t.sort}?" in q.text]
        if len(things) == 1 and len(world.objects) >= 3:
            found += 1
            yield world, once[0].text, once[0].answer, things[0].box


def points_at(score: torch.Tensor, heard: Heard, size: tuple[int, int], loaded: Any, box: Box) -> bool:
    """Return whether the middle of the token of highest score lies in a box, a cell around it allowed."""
    best, first = int(score.argmax()), 0
    for m, (left, top, right, bottom) in zip(heard.maps, places(heard.maps, size, *loaded), strict=True):
        if best < first + len(m.kept):
            _, y, x = m.coords[best - first].tolist()
            _, h, w = m.grid or (1, 1, 1)
            at = (left + (x + 0.5) * (right - left) / w, top + (y + 0.5) * (bottom - top) / h)
            return all(box[i] - CELL <= at[i] <= box[i + 2] + CELL for i in (0, 1))
        first += len(m.kept)
    raise IndexError(f"token {best} lies in no grid")


def one(loaded: Any, world: World, text: str, answer: str, box: Box, rng: random.Random) -> dict[str, Any]:
    """Return the marks of one question."""
    image = world.image
    question, general = hear(
        *loaded, image, [(text, NEW_TOKENS), (GENERAL, NEW_TOKENS)], layers="0:", steps=NEW_TOKENS, sinks=True
    )
    depth, marks = question.attention.shape[1], {"first": question.answer == answer}
    seen = (question, image.size, loaded, box)
    shown = {"object": inside(box, image)}
    for layer in range(depth):
        rows = question.attention[0, layer], general.attention[0, layer]
        marks[f"ratio {layer}"] = points_at(ratio(*rows), *seen)
        marks[f"attention {layer}"] = points_at(rows[0], *seen)
    shares = {}
    for name in ("contrast", "relative"):
        look = look_of(name, None, None)
        chosen = sorted(layer_numbers(look.layers, depth))
        parts = [only(heard, chosen, look.steps) for heard in (question, general)]
        found = focused(image.size, *parts, look, 0.3, 3, loaded)
        marks[f"{name} points"] = points_at(found.score, *seen)
        shares[name] = found.share
        shares[f"{name} object"] = float(found.pixels[box[1] : box[3], box[0] : box[2]].mean())
        shown[name] = found.pixels
    left, top, right, bottom = found.box
    x, y = rng.randint(0, image.width - (right - left)), rng.randint(0, image.height - (bottom - top))
    shown["random"] = inside((x, y, x + right - left, y + bottom - top), image)
    answers = said(*loaded, [masked(image, pixels) for pixels in shown.values()], text)
    marks |= {name: given == answer for name, given in zip(shown, answers, strict=True)}
    return {"marks": {name: bool(mark) for name, mark in marks.items()}, "shares": shares, "sinks": found.sinks}


@torch.inference_mode()
def said(model: Any, processor: Any, images: list[Image.Image], text: str) -> list[str]:
    """Return the greedy answers to one question about several images, in one batch."""
    prompts = [chat(processor, "image", 1, text)] * len(images)
    inputs = processor(text=prompts, images=[[image] for image in images], return_tensors="pt", padding=True)
    new = model.generate(**inputs, do_sample=False, max_new_tokens=NEW_TOKENS)[:, inputs["input_ids"].shape[1] :]
    return [answer.strip() for answer in processor.tokenizer.batch_decode(new, skip_special_tokens=True)]


def only(heard: Heard, layers: list[int], steps: int) -> Heard:
    """Return what was heard in some layers, for some answer tokens."""
    part = heard.attention[:steps, layers]
    return Heard(part, heard.sinks, heard.answer, heard.tokens, heard.prompt_tokens, heard.maps)


def inside(box: Box, image: Image.Image) -> np.ndarray:
    pixels = np.zeros(image.size[::-1], dtype=bool)
    pixels[box[1] : box[3], box[0] : box[2]] = True
    return pixels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="tiny-qwen")
    parser.add_argument("--images", type=int, default=100, help="in each block")
    parser.add_argument("--block", type=int, nargs="+", default=[0, 1, 2, 3], help="of seeds, each with its own images")
    options = parser.parse_args()
    loaded, rng = vlmopt.load_checkpoint(options.checkpoint), random.Random(0)
    kind = loaded[0].config.model_type
    for block in options.block:
        seed = FIRST_SEED + block * BLOCK_SEEDS
        tasks = asked(options.images, kind, seed)
        found = [one(loaded, *task, rng) for task in tqdm(tasks, total=options.images, desc=f"block {block}")]
        append(
            "second_look",
            {
                "checkpoint": options.checkpoint,
                "first_seed": seed,
                "marks": {name: [entry["marks"][name] for entry in found] for name in found[0]["marks"]},
                "shares": {name: [round(e["shares"][name], 4) for e in found] for name in found[0]["shares"]},
                "sinks": sum(entry["sinks"] for entry in found),
            },
        )


if __name__ == "__main__":
    main()

"""Draw a second look at a generated scene into `docs/second-look.png`: `python -m tools.look_picture`."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

import vlmopt
from vlmopt.looking.draw import draw
from vlmopt.synthetic import scene

FILE = Path(__file__).parents[1] / "docs/second-look.png"
SEED, SIZE = 7006, (280, 196)


def made() -> Image.Image:
    """Return the drawing of a look at one object of a scene by a bundled checkpoint."""
    world = scene(SEED, SIZE, questions=40)
    question = next(q for q in world.questions if q.kind == "colour")
    model, processor = vlmopt.load_checkpoint("tiny-qwen")
    found = vlmopt.second_look(model, processor, world.image, question.text, look="relative", refine="mask")
    return draw(world.image, found)


if __name__ == "__main__":
    made().quantize(96).save(FILE, optimize=True)

"""`vlmopt look`: ask about an image, find the part that the question looks at, and ask again about that."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ..checkpoints import bundled
from ..loading import check_device, load
from ..looking.ask import second_look
from ..looking.draw import draw
from ..looking.focus import GENERAL
from ..media import load_image
from ..policy import Policy


def execute(options: argparse.Namespace) -> None:
    """Print both answers and the box, and draw the map; what the options alone can tell is refused before loading."""
    policy = Policy.load(options.policy)
    out = Path(options.out)
    if out.is_dir():
        raise ValueError(f"--out {options.out} is a directory; give a file")
    check_device(options.device)
    given = load_image(options.image)
    loaded = load(options.model, device=options.device, dtype=options.dtype)
    found = second_look(
        loaded.model,
        loaded.processor,
        given.image,
        options.question,
        look=options.look,
        refine=options.refine,
        answer=options.answer,
        policy=policy,
        general=GENERAL if options.general is None else options.general,
        layers=options.layers,
        steps=options.steps,
        share=options.share,
        most=options.most,
        sinks=options.sinks,
        max_new_tokens=options.max_new_tokens,
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    draw(given.image, found).save(out)
    small = [f"{loaded.name} is small and knows drawn images alone; --model takes others"] * (loaded.name in bundled())
    notes = [*small, *loaded.notes, *(f"{given.source}: {note}" for note in given.notes)]
    if options.json:
        asked = {"model": loaded.name, "image": options.image, "question": options.question}
        print(json.dumps({**asked, **found.to_dict(), "drawing": str(out), "notes": notes}, indent=2))
        return
    for note in notes:
        print(f"note: {note}")
    print(f"question      {options.question}\n{found}\nwrote {out}")

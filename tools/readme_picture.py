"""Draw the README's picture from what `make demo` wrote: the image as the model got it, and what was kept of it.

`python tools/readme_picture.py demo-out docs/overlay.png`
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from vlmopt.overlay import CLICK, GAP, INK, PAPER
from vlmopt.ring import ring


def main(run: Path, out: Path) -> None:
    runs = json.loads((run / "result.json").read_text())
    after = Image.open(run / "overlay.png").convert("RGB")
    source = Image.open(runs["images"][0]).convert("RGB")
    legend = 48  # pixels of the legend below the overlay's panel
    size = (after.width - 2 * GAP, after.height - 2 * GAP - legend)
    before = source.resize(size, Image.Resampling.LANCZOS)
    dense, pruned = (runs["runs"][name] for name in ("dense", "optimized"))
    x, y = (int(number) for number in re.findall(r"\d+", dense["answer"]))
    ring(before, x / source.width * size[0], y / source.height * size[1], CLICK, 17)
    sheet = Image.new("RGB", (2 * after.width, after.height), PAPER)
    sheet.paste(before, (GAP, GAP))
    sheet.paste(after, (after.width, 0))
    ImageDraw.Draw(sheet).text(
        (GAP, after.height - legend + 3),
        f"all {dense['visual_tokens_kept']:.0f} tokens: clicks {dense['answer']}, KV cache {cache(dense)}",
        fill=INK,
        font=ImageFont.load_default(15),
    )
    ImageDraw.Draw(sheet).text(
        (2 * after.width - GAP, after.height - legend + 21),
        f"clicks {pruned['answer']}, KV cache {cache(pruned)}",
        fill=INK,
        font=ImageFont.load_default(15),
        anchor="ra",
    )
    sheet.quantize(128).save(out, optimize=True)


def cache(run: dict[str, Any]) -> str:
    return f"{run['report']['kv_cache_bytes'] / 2**10:.0f} KiB"


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

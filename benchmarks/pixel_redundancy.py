"""What leaving redundant cells out of the vision tower saves on a screenshot of 1280 x 800, and costs on a photograph.

Qwen2.5-VL with random weights, its tower in the published shape (one block in eight sees the whole image) but
narrower. The screen is drawn here: toolbars, a sidebar, text, a table and a dialog; `--image` takes a real one. The
photograph is noise, where nothing is redundant: what is left of the difference to dense is the price of looking.
FocusUI runs with an untrained scorer, which costs what a trained one does.
Limits: the share of patches, which no tower can beat, and the FLOPs that remain, counted from what the blocks got;
"tokens" is the mean over the decoder's layers.

    python benchmarks/pixel_redundancy.py
    python benchmarks/pixel_redundancy.py --image screenshot.png --repeats 7
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

import vlmopt
from common import append, interleaved
from vlmopt.frames import video_inputs
from vlmopt.measure import Spread
from vlmopt.pruning import (
    DivPrune,
    FastV,
    FocusUI,
    InstructionSimilarity,
    PixelRedundancy,
    Random,
    Resize,
    Scorer,
    UIGraph,
)
from vlmopt.scorers import TrainedScorer, facts, save

IMAGE, START, END = 1000, 1001, 1002
ON_NOISE = ("dense", "pixel_redundancy, exact", "pixel_redundancy, 0.02")


def policies(scorer: str) -> dict[str, Any]:
    """Return the policies by name; `scorer` is where that of FocusUI lies."""
    return {
        "dense": "dense",
        "pixel_redundancy, exact": PixelRedundancy(),
        "pixel_redundancy, 0.02": PixelRedundancy(tolerance=0.02),
        "random 0.3": Random(keep_ratio=0.3),
        "resize 0.3": Resize(keep_ratio=0.3),
        "fastv 0.3": FastV(keep_ratio=0.3),
        "div_prune 0.3": DivPrune(keep_ratio=0.3),
        "ui_graph 0.3": UIGraph(keep_ratio=0.3),
        "instruction_similarity 0.3": InstructionSimilarity(keep_ratio=0.3),
        "focus_ui 0.3, pospad": FocusUI(keep_ratio=0.3, scorer=scorer),
        "exact, then focus_ui 0.3, pospad": [PixelRedundancy(), FocusUI(keep_ratio=0.3, scorer=scorer)],
    }


def random_model() -> Any:
    """Build a model of 36 M parameters; the decoder does about a third of the work of a prompt with one screen."""
    text = {
        "hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 8, "num_attention_heads": 8,
        "num_key_value_heads": 4, "vocab_size": 1024, "max_position_embeddings": 4096, "tie_word_embeddings": True,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
        "rope_parameters": {"rope_type": "default", "mrope_section": [8, 12, 12], "rope_theta": 1e6},
    }  # fmt: skip
    vision = {
        "depth": 8, "hidden_size": 320, "intermediate_size": 864, "num_heads": 5, "out_hidden_size": 512,
        "fullatt_block_indexes": [7], "patch_size": 14, "window_size": 112,
    }  # fmt: skip
    config = Qwen2_5_VLConfig(
        text_config=text, vision_config=vision, image_token_id=IMAGE, video_token_id=1003,
        vision_start_token_id=START, vision_end_token_id=END,
    )  # fmt: skip
    torch.manual_seed(0)
    return Qwen2_5_VLForConditionalGeneration(config).eval()


def screen() -> Image.Image:
    """Draw an application window, 1280 x 800."""
    image = Image.new("RGB", (1280, 800), (246, 247, 249))
    draw, small, large = ImageDraw.Draw(image), ImageFont.load_default(13), ImageFont.load_default(20)
    words = ("report", "total", "invoice", "customer", "review", "delivery", "budget", "meeting", "draft", "status")
    rng = np.random.default_rng(0)

    def text(n: int) -> str:
        return " ".join(rng.choice(words, n))

    draw.rectangle((0, 0, 1280, 48), (32, 44, 64))
    draw.text((20, 12), "Orders", "white", large)
    for i, name in enumerate(("File", "Edit", "View", "Reports", "Help")):
        draw.text((180 + 90 * i, 17), name, (220, 226, 236), small)
    draw.rectangle((0, 48, 220, 800), (228, 232, 238))
    for i in range(11):
        draw.rectangle((18, 76 + 44 * i, 34, 92 + 44 * i), (96, 120, 160))
        draw.text((46, 76 + 44 * i), text(2), (40, 48, 60), small)
    for i in range(14):
        y = 130 + 40 * i
        draw.line((250, y + 30, 1250, y + 30), (214, 218, 224))
        draw.text((262, y + 6), f"{1000 + i}", (40, 48, 60), small)
        draw.text((340, y + 6), text(int(rng.integers(2, 7))), (40, 48, 60), small)
        draw.text((900, y + 6), f"{rng.integers(10, 9000) / 10:.2f}", (40, 48, 60), small)
    draw.rounded_rectangle((640, 300, 1060, 520), 10, "white", (170, 176, 186))
    draw.text((664, 322), "Delete this order?", (20, 24, 30), large)
    draw.text((664, 364), text(6), (70, 76, 86), small)
    for x, name, colour in ((840, "Cancel", (190, 196, 206)), (950, "Delete", (200, 50, 50))):
        draw.rounded_rectangle((x, 460, x + 90, 496), 6, colour)
        draw.text((x + 22, 470), name, "white", small)
    return image


def prompt(image: Image.Image) -> dict[str, torch.Tensor]:
    """Make the inputs of one image and a short question; both sides rounded to cells of 28 px, as processors do."""
    width, height = (max(round(side / 28), 1) * 28 for side in image.size)
    resized = np.array(image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC))
    given = video_inputs(torch.from_numpy(resized).permute(2, 0, 1)[None])  # an image is a video of one frame
    grid = given["video_grid_thw"]
    ids = torch.tensor([[5, 6, 7, START, *[IMAGE] * (int(grid.prod()) // 4), END, *range(10, 30)]])
    return {
        "input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": (ids == IMAGE).long(),
        "pixel_values": given["pixel_values_videos"], "image_grid_thw": grid,
    }  # fmt: skip


@torch.inference_mode()
def measured(model: Any, inputs: dict[str, Any], policy: Any, found: dict[str, Any]) -> float:
    """Measure the time to the first token; `found` receives what the blocks were given and the times of the stages."""
    tower, work = model.model.visual, []

    def count(block: Any, args: Any, kwargs: dict[str, Any]) -> None:
        segments = kwargs["cu_seqlens"].diff().double()
        work.append(2.0 * linear(block) * len(args[0]) + 4.0 * tower.config.hidden_size * float(segments @ segments))

    with vlmopt.optimized(model, policy):
        counters = [block.register_forward_pre_hook(count, with_kwargs=True) for block in tower.blocks]
        model.generate(**inputs, max_new_tokens=1, do_sample=False)
        report = vlmopt.report(model)
        for counter in counters:
            counter.remove()
    total = len(inputs["pixel_values"])
    encoded = report.tower["encoded"] if report.tower else total
    work.append(2.0 * encoded * (linear(tower.patch_embed) + linear(tower.merger) / 4))
    text, layers = model.config.get_text_config(), model.model.language_model.layers
    n = report.key_lengths  # no token has been generated yet that a layer would have seen
    decoder = sum(2.0 * linear(layer) * w + 2.0 * w * w * text.hidden_size for layer, w in zip(layers, n, strict=True))
    found.update(patches=encoded, tokens=round(sum(n) / len(n)), tower_flops=sum(work), flops=sum(work) + decoder)
    found.setdefault("vision", []).append(report.ms["vision"])
    found.setdefault("scoring", []).append(report.ms["scoring"] or 0.0)
    return report.ms["ttft"] or 0.0


def linear(module: Any) -> int:
    return sum(p.numel() for p in module.parameters())


def run(name: str, model: Any, image: Image.Image, policies: dict[str, Any], repeats: int) -> None:
    inputs = {name: value.to(model.device) for name, value in prompt(image).items()}
    found: dict[str, dict[str, Any]] = {key: {} for key in policies}
    variants: dict[str, Callable[[], float]] = {
        key: lambda key=key: measured(model, inputs, policies[key], found[key]) for key in policies
    }
    ttft = interleaved(variants, repeats)
    dense = {"ttft": Spread.of(ttft["dense"]).median, "vision": Spread.of(found["dense"]["vision"][1:]).median}
    print(f"\n{name}: {len(inputs['pixel_values'])} patches, {inputs['input_ids'].shape[1]} prompt tokens")
    columns = "patches  tokens  tower ms  speed-up  limit  ttft ms  p20  p80  speed-up  limit  choosing"
    print(f"{'':>33}" + "".join(f"{c:>10}" for c in columns.split("  ")))
    rows = []
    for key in policies:
        one, t = found[key], Spread.of(ttft[key]).to_dict()
        vision, scoring = (Spread.of(one[stage][1:]).median for stage in ("vision", "scoring"))  # the first is warm-up
        row = {
            "policy": key, "patches": one["patches"], "tokens": one["tokens"], "vision_ms": vision,
            "vision_speedup": dense["vision"] / vision,
            "vision_limit": found["dense"]["tower_flops"] / one["tower_flops"], "ttft_ms": t,
            "ttft_speedup": dense["ttft"] / t["median"], "ttft_limit": found["dense"]["flops"] / one["flops"],
            "scoring_ms": scoring,
        }  # fmt: skip
        rows.append(row)
        print(
            f"{key:>33}{row['patches']:>10}{row['tokens']:>10}{vision:>10.0f}{row['vision_speedup']:>9.2f}x"
            f"{row['vision_limit']:>9.2f}x{t['median']:>10.0f}{t['p20']:>10.0f}{t['p80']:>10.0f}"
            f"{row['ttft_speedup']:>9.2f}x{row['ttft_limit']:>9.2f}x{scoring:>10.1f}"
        )
    record = {"picture": name, "size": list(image.size), "parameters": linear(model), "repeats": repeats}
    print(f"appended to {append('pixel_redundancy', {**record, 'rows': rows})}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", type=Path, help="a screenshot instead of the drawn one")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    model = random_model().to(args.device)
    shown = Image.open(args.image) if args.image else screen()
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        width = model.get_input_embeddings().weight.shape[1]
        save(TrainedScorer(Scorer(width), torch.zeros(width), facts(model)), folder)
        chosen = policies(folder)
        run(args.image.name if args.image else "screen", model, shown, chosen, args.repeats)
    noise = np.random.default_rng(0).integers(0, 256, (shown.size[1], shown.size[0], 3)).astype(np.uint8)
    run("noise", model, Image.fromarray(noise), {key: chosen[key] for key in ON_NOISE}, args.repeats)


if __name__ == "__main__":
    main()

"""Click on a screenshot with cells left out twice: before the vision tower, and before the language model.

`pixel_redundancy` leaves out cells that their neighbours predict, so that the tower has less to encode; `focus_ui`
keeps the cells of the rest that its scorer relates to the instruction. You see where the model clicks, and in
examples-out/click.png the point ringed among what was kept.
"""

from importlib.resources import files
from pathlib import Path

from PIL import Image

import vlmopt
from vlmopt.analysis.click import click_of
from vlmopt.loading import load
from vlmopt.overlay import overlay
from vlmopt.prompt import image_prompt
from vlmopt.pruning import FocusUI, PixelRedundancy

OUT = Path("examples-out")

loaded = load("tiny-qwen", device="cpu")
model, processor = loaded.model, loaded.processor
page = Image.open(str(files("vlmopt.synthetic.samples") / "page.png")).convert("RGB")
inputs = image_prompt(processor, "Click Save.", [page])

with vlmopt.optimized(model, [PixelRedundancy(), FocusUI(keep_ratio=0.1, scorer="tiny-qwen")]):
    ids = model.generate(**inputs, max_new_tokens=12, do_sample=False)
    report = vlmopt.report(model)

answer = processor.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
click = click_of(loaded, page, answer)  # fractions of width and height; knows what the model's coordinates mean
sample = report.samples[0]
print(f"answer:  {answer}")
print(f"tower:   {report.tower['encoded']} of {report.tower['given']} patches encoded")
print(f"LLM:     {sample['visual_tokens_kept']} of {sample['visual_tokens']} visual tokens kept")

OUT.mkdir(exist_ok=True)
overlay(page, report.maps(0), title="pixel_redundancy, focus_ui", clicks=[click] if click else []).save(
    OUT / "click.png"
)

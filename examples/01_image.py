"""Ask about an image, as the model is and with a quarter of the visual tokens.

You see both answers, the report of what was dropped and what it cost, and in examples-out/image.png which parts of the
image were kept.
"""

from importlib.resources import files
from pathlib import Path

from PIL import Image

import vlmopt
from vlmopt.overlay import overlay

OUT = Path("examples-out")
QUESTION = "Describe the picture."

model, processor = vlmopt.load_checkpoint("tiny-qwen")  # a Hub id works the same way
image = Image.open(str(files("vlmopt.synthetic.samples") / "scene.png")).convert("RGB")
turn = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}]
prompt = processor.apply_chat_template(turn, add_generation_prompt=True)
inputs = processor(text=[prompt], images=[image], return_tensors="pt")


def ask() -> str:
    ids = model.generate(**inputs, max_new_tokens=48, do_sample=False)
    return processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0].strip()


print("dense:    ", ask())
vlmopt.optimize(model, "balanced")  # in place; generate() stays as it is
print("balanced: ", ask())
report = vlmopt.report(model)
print(report)
vlmopt.restore(model)  # the model's own behaviour again, bit for bit
print("restored: ", ask())

OUT.mkdir(exist_ok=True)
overlay(image, report.maps(0), title="balanced").save(OUT / "image.png")

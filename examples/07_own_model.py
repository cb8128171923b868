"""A model loaded as you always do, and a policy kept beside its weights.

The directory stands for your own fine-tuned model. You see that transformers' own `from_pretrained` is enough, and that
a policy comes back from disk as it was written.
"""

from importlib.resources import files
from pathlib import Path

from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

import vlmopt
from vlmopt.prompt import image_prompt
from vlmopt.pruning import DivPrune, FastV

MINE = Path("examples-out") / "my-model"

for part in vlmopt.load_checkpoint("tiny-qwen"):  # model and processor
    part.save_pretrained(MINE)
policy = vlmopt.Policy(prune=[DivPrune(keep_ratio=0.5), FastV(keep_ratio=0.25, layer=2)])
policy.save_pretrained(MINE)

model = AutoModelForImageTextToText.from_pretrained(MINE).eval()
processor = AutoProcessor.from_pretrained(MINE)
loaded = vlmopt.Policy.from_pretrained(MINE)
assert loaded == policy
print(sorted(path.name for path in MINE.iterdir()))

image = Image.open(str(files("vlmopt.synthetic.samples") / "page.png")).convert("RGB")
inputs = image_prompt(processor, "Click Save.", [image])
vlmopt.optimize(model, loaded)  # the path of the directory would do as well
ids = model.generate(**inputs, max_new_tokens=12, do_sample=False)
print(processor.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip())
for cut in vlmopt.report(model).applied:
    print(f"{cut['method']} before layer {cut['layer']}: {cut['before']} -> {cut['after']} tokens")

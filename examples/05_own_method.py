"""A selector of your own: a dataclass with one method, registered under a name that works everywhere.

`stand_out` keeps the tokens that differ most from the mean token of their image. You see it used by name beside the
control `random`, with the settings, budgets, positions and batches that every selector has.
"""

from dataclasses import dataclass
from importlib.resources import files

import torch
from PIL import Image
from torch import Tensor

import vlmopt
from vlmopt.prompt import image_prompt
from vlmopt.pruning import ScoreSelector, Signal, VisualEmbeds, VisualTokens, register


@register("stand_out")
@dataclass(frozen=True, kw_only=True)
class StandOut(ScoreSelector):
    """Lowest cosine with the mean of the image's embeddings."""

    @property
    def needs(self) -> frozenset[Signal]:
        return frozenset({VisualEmbeds()})  # captured once for all methods of a policy

    def score(self, tokens: VisualTokens) -> Tensor:  # fp32 [n], the highest stay
        embeds = tokens.signals[VisualEmbeds()].float()  # [n, d]
        return -torch.cosine_similarity(embeds, embeds.mean(0, keepdim=True))


model, processor = vlmopt.load_checkpoint("tiny-qwen")
image = Image.open(str(files("vlmopt.synthetic.samples") / "scene.png")).convert("RGB")
inputs = image_prompt(processor, "Describe the picture.", [image])
for policy in ("dense", "stand_out:keep_ratio=0.25", "random:keep_ratio=0.25"):
    with vlmopt.optimized(model, policy):
        ids = model.generate(**inputs, max_new_tokens=48, do_sample=False)
        kept = vlmopt.report(model).samples[0]["visual_tokens_kept"]
    answer = processor.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    print(f"{policy:<26} {kept:>3} tokens: {answer.strip()}")

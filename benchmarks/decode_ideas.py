r"""Two ideas that make decoding smaller or shorter, tried before anything of the kind is built: what do they cost?

`tiers`: ZipVL's cache (arXiv 2410.08584). When the prompt is over, the keys that hold `TAU` of the attention of the
last rows go to 4 bits and the others to 2, keys per channel and values per token in groups of 64, as in KIVI (arXiv
2402.02750). It stands beside 4 bits for all and beside evictions, which need no unpacking.

`neurons`: CoreMatching's decoding (arXiv 2505.19235). Of every MLP only the neurons run that are most often among a
token's highest activations over the prompt.

    python benchmarks/decode_ideas.py --checkpoint tiny-llava
    python benchmarks/tables.py --write      # into docs/kv-cache.md
"""

from __future__ import annotations

import argparse
import statistics
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from tqdm import tqdm
from transformers import DynamicCache

import vlmopt
from common import append
from hallucination_task import task
from kv_cache import BLOCKS, OWN, SEED, captions, replies
from vlmopt.kv import KeyDiff
from vlmopt.metrics import chair, phrases
from vlmopt.policy import Policy
from vlmopt.runtime.structure import structure_of
from vlmopt.synthetic.hallucination import classes

TAU = 0.975
GROUP = 64
ROWS = 64  # last ones of the prompt
NEURONS = (0.6, 0.4, 0.2)
RATIOS = (0.5, 0.2)  # of keys that stay, for comparison


def packed(values: Tensor, bits: int, dim: int) -> Tensor:
    """Return values [Hk, n, D] as they come back from so many bits, with a scale and a shift per `GROUP` of an axis."""
    moved = values.float().movedim(dim, -1)
    length = moved.shape[-1]
    groups = pad(moved, (0, -length % GROUP), mode="replicate").unflatten(-1, (-1, GROUP))
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    step = ((high - low) / (2**bits - 1)).clamp_min(1e-12)
    back = (((groups - low) / step).round() * step + low).flatten(-2)[..., :length]
    return back.movedim(-1, dim).to(values.dtype)


class Tiers:
    """Reads a prefix and packs its cache: what holds `TAU` of the attention to 4 bits, the rest to `low`."""

    def __init__(self, low: int) -> None:
        self.low, self.bits = low, []

    def __call__(self, model: Any, prefix: dict[str, Any]) -> DynamicCache:
        cache = DynamicCache(config=model.config.get_text_config())
        out = model(**prefix, past_key_values=cache, output_attentions=True)
        for layer, weights in zip(cache.layers, out.attentions, strict=True):
            share = weights[0, :, -ROWS:].mean((0, 1))
            order = share.sort(descending=True)
            few = int((order.values.cumsum(0) < TAU * share.sum()).sum()) + 1
            high = torch.zeros_like(share, dtype=torch.bool).scatter_(0, order.indices[:few], True)
            for chosen, bits in ((high, 4), (~high, self.low)):
                if bool(chosen.any()):
                    layer.keys[0][:, chosen] = packed(layer.keys[0][:, chosen], bits, 1)
                    layer.values[0][:, chosen] = packed(layer.values[0][:, chosen], bits, 2)
            self.bits.append(float(torch.where(high, 4.0, float(self.low)).mean()) + 32 / GROUP)
        return cache


class FewNeurons:
    """Pre-hooks of the last projection of every MLP: a prompt chooses neurons, later rows have these alone."""

    def __init__(self, model: Any, share: float) -> None:
        self.share, self.stays, self.handles = share, {}, []
        for number, layer in enumerate(structure_of(model).layers):
            self.handles.append(layer.mlp.down_proj.register_forward_pre_hook(partial(self.run, number)))

    def run(self, number: int, module: Any, args: tuple[Tensor]) -> tuple[Tensor]:
        hidden = args[0]
        count = int(self.share * hidden.shape[-1])
        if hidden.shape[1] > 1:
            strong = hidden.abs() >= hidden.abs().topk(count, dim=-1).values[..., -1:]
            best = strong.float().mean(1).topk(count, dim=-1).indices
            self.stays[number] = torch.zeros(len(hidden), 1, hidden.shape[-1]).scatter_(2, best[:, None], 1.0)
            return args
        return (hidden * self.stays[number].to(hidden.dtype),)

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()


def quality(options: argparse.Namespace) -> None:
    model, processor = vlmopt.load_checkpoint(options.checkpoint)
    lexicon = phrases(classes(), "classes of the images")
    for block in options.block:
        job = task(options.images, options.images, model.config.model_type, SEED + block * BLOCKS)
        facts = {"checkpoint": options.checkpoint, "block": block, "images": options.images}
        ask = partial(replies, model, processor, job.worlds, job.polls["random"])
        for ratio in (1.0, *RATIOS):
            with vlmopt.optimized(model, Policy(kv=None if ratio == 1 else KeyDiff(keep_ratio=ratio, **OWN))):
                right = ask()
            name = "full cache" if ratio == 1 else f"key_diff, {100 * ratio:.0f} % of the keys"
            append("decode_ideas", {**facts, "idea": "tiers", "method": name, "right": right, "bits": 16 * ratio})
        kernel = model.config.get_text_config()._attn_implementation
        model.set_attn_implementation("eager")  # the only one that tells its weights
        for name, low in tqdm({"4 bits": 4, "4 and 2 bits": 2}.items(), desc=f"{options.checkpoint}, {block}, tiers"):
            tiers = Tiers(low)
            right, bits = ask(tiers), statistics.mean(tiers.bits)
            append("decode_ideas", {**facts, "idea": "tiers", "method": name, "right": right, "bits": bits})
        model.set_attn_implementation(kernel)
        for share in tqdm((1.0, *NEURONS), desc=f"{options.checkpoint}, block {block}, neurons"):
            few = FewNeurons(model, share)
            with vlmopt.optimized(model, Policy()):
                said, _ = captions(model, processor, job.worlds)
            few.remove()
            marks = chair(said, [world.classes for world in job.worlds], lexicon)
            counts = {name: getattr(marks, name).tolist() for name in ("found", "names", "there")}
            append("decode_ideas", {**facts, "idea": "neurons", "share": share, "captions": said, **counts})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="tiny-qwen")
    parser.add_argument("--images", type=int, default=24, help="of a block")
    parser.add_argument("--block", type=int, nargs="+", default=[0, 1, 2], help="of seeds, each with its own images")
    quality(parser.parse_args())


if __name__ == "__main__":
    main()

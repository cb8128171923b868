"""Do tokens at positions that the rotation leaves nearly alone keep clicks where they belong? An experiment.

IVC-Prune (arXiv 2602.03060) keeps, whatever they show, visual tokens whose rotary angles have the highest mean cosine
and the highest mean sine over frequencies, as anchors of the model's sense of place. Here they take a fifth of a
host's budget before the language model, by the rotation that the model applies (the released code for Qwen averages
over axes that it does not mix). The same fifth at random and evenly spread stands beside it: an anchor is worth its
place if it beats these. The method is not in the product, which would have to show that first. Clicks on drawn screens
and rendered pages; figures of the small bundled checkpoint say nothing about real models.

    python benchmarks/position_anchors.py
    python benchmarks/position_anchors.py --tables
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from table_parts import markdown, points, records
from torch import Tensor
from tqdm import tqdm

import vlmopt
from common import append
from grounding import CHECKPOINT, FIRST_SEED, Target, answers, generated, hits, real
from pages import pages
from vlmopt.metrics import mean_interval, wilson
from vlmopt.prompt import chat
from vlmopt.pruning import DivPrune, Random, Selection, Selector, Signal, VisualTokens
from vlmopt.pruning.base import top
from vlmopt.pruning.uniform import spread

SHARE = 0.2  # of the host's budget
KEEP = (0.3, 0.1)
HOSTS: dict[str, type[Selector]] = {"div_prune": DivPrune, "random": Random}
Choose = Callable[[VisualTokens, int], Tensor]  # (tokens, how many) -> which of them


def mean_angles(places: Tensor, theta: Tensor, sections: list[int]) -> tuple[Tensor, Tensor]:
    """Return the mean cosine and the mean sine, [n] each, of a rotation over all its frequencies.

    Args:
        places: Long[n, A], positions on every axis. theta: [F] frequencies. sections: of an axis each, in order.
    """
    axis = torch.repeat_interleave(torch.arange(len(sections)), torch.tensor(sections))
    angles = places[:, axis] * theta
    return angles.cos().mean(1), angles.sin().mean(1)


@dataclass(frozen=True)
class Rotation:
    """The rotation of a model's decoder, and where the image of a prompt begins."""

    first: int
    theta: Tensor
    sections: list[int]

    def __call__(self, tokens: VisualTokens, count: int) -> Tensor:
        """Choose half by cosine, half by sine; who is chosen twice leaves a place to the next by sine."""
        cos, sin = mean_angles(self.first + tokens.coords.cpu(), self.theta, self.sections)
        chosen = top(cos, -(-count // 2))
        return torch.cat([chosen, top(sin.index_fill(0, chosen, -torch.inf), count - len(chosen))])


def at_random(tokens: VisualTokens, count: int) -> Tensor:
    return torch.randperm(len(tokens), generator=torch.Generator().manual_seed(1))[:count]


def evenly(tokens: VisualTokens, count: int) -> Tensor:
    return spread(tokens.coords.cpu(), count)


@dataclass(frozen=True, kw_only=True)
class Anchored(Selector):
    """Keep some tokens by their place alone; a host chooses among the others."""

    host: Selector = field(kw_only=False)
    anchors: Choose

    @property
    def needs(self) -> frozenset[Signal]:
        return self.host.needs

    def pick(self, tokens: VisualTokens, k: int) -> Selection:
        device = tokens.ordinal.device
        anchors = self.anchors(tokens, round(SHARE * k)).to(device)
        free = torch.ones(len(tokens), dtype=torch.bool, device=device).index_fill(0, anchors, False).nonzero()[:, 0]
        chosen = self.host.pick(tokens.subset(free), k - len(anchors)).keep
        return Selection(torch.cat([anchors, free[chosen]]).sort().values)


def rotation_of(model: Any, processor: Any, target: Target) -> Rotation:
    text = chat(processor, "image", 1, target.question.text)
    ids = processor(text=[text], images=[[target.image]], return_tensors="pt")["input_ids"][0]
    config = model.config.get_text_config()
    width, rope = config.hidden_size // config.num_attention_heads, config.rope_parameters
    theta = rope["rope_theta"] ** -(torch.arange(0, width, 2) / width)
    first = int((ids == model.config.image_token_id).nonzero()[0, 0])
    return Rotation(first, theta, list(rope["mrope_section"]))


def run(count: int) -> None:
    model, processor = vlmopt.load_checkpoint(CHECKPOINT)
    found = pages()
    sets = {"generated": generated(count, FIRST_SEED + 500_000), "rendered": real(found, count, FIRST_SEED + 1)}
    for name, targets in sets.items():
        ways: dict[str, Choose] = {"anchors": rotation_of(model, processor, targets[0])}
        ways |= {"random": at_random, "even": evenly}
        policies: dict[str, Any] = {"dense": []}
        for keep in KEEP:
            for host, kind in HOSTS.items():
                policies[f"{host} {keep:g}"] = kind(keep_ratio=keep)
                for way, choose in ways.items():
                    cut = Anchored(kind(keep_ratio=keep), keep_ratio=keep, anchors=choose)
                    policies[f"{host} {keep:g} + {way}"] = cut
        marks = {
            label: hits(targets, answers(model, processor, targets, policy)[0])
            for label, policy in tqdm(policies.items(), desc=f"{name}, {len(targets)} targets")
        }
        append("position_anchors", {"targets": name, "of": len(targets), "pages": found.name, "marks": marks})


def tables() -> None:
    """Print Markdown of what was measured last on each kind of target."""
    head = ["host, share kept", "alone", "+ anchors", "− the same share at random", "− evenly spread"]
    for record in {cell["targets"]: cell for cell in records("position_anchors")}.values():
        marks, of = record["marks"], record["of"]
        print(f"\n{record['targets']} screens, {of} targets, dense {percent(marks['dense'])}\n")
        rows = []
        for label in (name for name in marks if name != "dense" and "+" not in name):
            anchored = marks[f"{label} + anchors"]
            row = [label, percent(marks[label]), percent(anchored)]
            row += [less(anchored, marks[f"{label} + {way}"]) for way in ("random", "even")]
            rows.append(row)
        print(markdown(head, rows))


def percent(marks: list[bool]) -> str:
    low, high = wilson(sum(marks), len(marks))
    return f"{100 * sum(marks) / len(marks):.1f} ± {50 * (high - low):.1f}"


def less(mine: list[bool], other: list[bool]) -> str:
    return points(mean_interval([a - b for a, b in zip(mine, other, strict=True)]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", type=int, default=300, help="of each kind")
    parser.add_argument("--tables", action="store_true", help="print Markdown of what was measured, and stop")
    options = parser.parse_args()
    if not options.tables:
        run(options.targets)
    tables()


if __name__ == "__main__":
    main()

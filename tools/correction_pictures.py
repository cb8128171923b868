"""Draw what every correction does, for its page: `python -m tools.correction_pictures [NAME ...]`, from the root.

tiny-llava describes a bundled scene. Of corrections of rows two maps show where one row looks, as it is and corrected:
the row that predicts the last token asked for, mean over the heads of the layer in which most attention moves. Of
corrections of heads a table shows every head's factor.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

import vlmopt
from tools.method_pictures import OUT, save
from vlmopt.analysis.cell_map import cell_map
from vlmopt.analysis.prompt_profile import head_profile
from vlmopt.attention_fix import (
    AdaptiveGeneratedText,
    AttentionFusion,
    Correction,
    GeneratedText,
    HeadGain,
    HeadGuided,
    IATProfile,
    ImageBoost,
    InformedTokens,
    RowCorrection,
    RowView,
    SinkDiagnosis,
    VisionHeads,
    VisualSink,
)
from vlmopt.checks import model_facts
from vlmopt.overlay import ACCENT, GAP, INK, PAPER
from vlmopt.prompt import as_seen, image_prompt
from vlmopt.runtime.structure import structure_of

SCENE = Path(__file__).parents[1] / "vlmopt" / "synthetic" / "samples" / "scene.png"
QUESTION = "Describe the picture."
TOKENS = 8  # generated; the last row that is drawn predicts the eighth
# It has no visual sinks: for the drawing the six cells that stand out here count as such.
SINKS: dict[str, Any] = {"dims": (174,), "tau": 1.85, "layers": "4"}
MORE = 1.2  # how much more every head is taken to look at its own text before real words
WIDE, TALL = 64, 26  # pixels of a head in the table

Kind = TypeVar("Kind", bound=Correction)


@dataclass(frozen=True)
class Row:
    """Weights of one row over all keys, fp32 [K], mean over heads, and what the keys are."""

    before: Tensor
    after: Tensor
    view: RowView

    @property
    def moved(self) -> float:
        return float((self.after - self.before).abs().sum())

    def shares(self, keys: Tensor) -> list[float]:
        return [100 * float(weights[keys].sum()) for weights in (self.before, self.after)]

    def __str__(self) -> str:
        view = self.view
        image, system, answer = (keys[0] for keys in (view.image, view.system, view.generated))
        rest = ~(image | system | answer)
        named = {"image": image, "system prompt": system, "question": rest, "answer": answer}
        found = {name: self.shares(keys) for name, keys in named.items()}
        return "; ".join(f"{name} {low:.0f} to {high:.0f} %" for name, (low, high) in found.items() if low + high > 1)


def corrections(model: Any, inputs: dict[str, Any]) -> dict[str, Callable[[], Correction]]:
    """Return how each correction is set up: as by default, but in the six layers of this model."""
    facts = model_facts(model, structure_of(model))
    depth, heads = facts["layers"], facts["num_heads"]
    return {
        "visual_sink": lambda: VisualSink(**SINKS),
        "informed_tokens": lambda: InformedTokens(layers="1:"),
        "image_boost": lambda: ImageBoost(layers="1:"),
        "attention_fusion": lambda: AttentionFusion(layers="1:"),
        "head_guided": lambda: HeadGuided(layers="1:"),
        "generated_text": lambda: GeneratedText(layers="1:"),
        "adaptive_generated_text": lambda: AdaptiveGeneratedText(
            layers="1:", profile=IATProfile(model=facts, samples=1, hallucinated=(9.0,) * depth, real=(9.0,) * depth,
                                            ratios=((MORE,) * heads,) * depth),
        ),
        "vision_heads": VisionHeads,
        "head_gain": lambda: HeadGain(layers="1:", profile=head_profile(model, inputs)),
        "sink_diagnosis": lambda: SinkDiagnosis(),
    }  # fmt: skip


def told(correction: Kind, **overridden: Any) -> Kind:
    """Return a correction of the same settings in which some methods are others."""
    kind = type(correction)
    given = {f.name: getattr(correction, f.name) for f in fields(correction) if f.init}
    made: Kind = type(kind.__name__, (kind,), overridden)(**given)
    return made


def rows_of(correction: RowCorrection, run: Callable[[Correction], Any]) -> dict[int, Row]:
    """Return the last row that was corrected in every layer."""
    seen: dict[int, Row] = {}

    def edit(self: RowCorrection, values: Tensor, view: RowView) -> tuple[Tensor, Tensor]:
        after, changed = type(correction).edit(self, values, view)
        both = [values, torch.where(changed[..., None], after, values)]
        if self.stage == "logits":
            both = [one.softmax(-1) for one in both]
        seen[view.layer] = Row(*(one[0, :, -1].mean(0) for one in both), view)
        return after, changed

    run(told(correction, edit=edit))
    return seen


def draw(name: str, model: Any, processor: Any) -> Image.Image:
    scene = Image.open(SCENE).convert("RGB")
    inputs, shown = image_prompt(processor, QUESTION, [scene]), as_seen(processor, scene)
    correction = corrections(model, inputs)[name]()

    def run(policy: Correction) -> Any:
        with vlmopt.optimized(model, policy), torch.inference_mode():
            model.generate(**inputs, max_new_tokens=TOKENS, min_new_tokens=TOKENS)
            return vlmopt.report(model).maps(0)

    if isinstance(correction, SinkDiagnosis):
        return draw_likeness(correction, run, shown, inputs["input_ids"][0] == model.config.image_token_id)
    if not isinstance(correction, RowCorrection):
        return draw_gains(correction, run)
    rows = rows_of(correction, run)
    layer = max(rows, key=lambda layer: rows[layer].moved)
    row = rows[layer]
    image = row.view.image[0]
    both = [weights[image] for weights in (row.before, row.after)]
    return cell_map([shown] * 2, run(correction) * 2, both, label=f"layer {layer}: {row}")


def draw_gains(correction: Any, run: Callable[[Correction], Any]) -> Image.Image:
    """Draw the factor of every head, layers downwards; layers that are left alone have none."""
    gains: dict[int, Tensor] = {}

    def gain(self: Any, heads: Tensor, text_only: Tensor | None, layer: int) -> Tensor:
        gains[layer] = type(correction).gain(self, heads, text_only, layer)
        return gains[layer]

    run(told(correction, gain=gain))
    count, most = next(iter(gains.values())).shape[1], max(float(one.max()) for one in gains.values())
    font = ImageFont.load_default(size=12)
    sheet = Image.new("RGB", (2 * GAP + 60 + count * WIDE, 2 * GAP + (len(gains) + 1) * TALL), PAPER)
    pen = ImageDraw.Draw(sheet)
    for head in range(count):
        pen.text((GAP + 60 + head * WIDE, GAP), f"head {head}", fill=INK, font=font)
    for line, layer in enumerate(sorted(gains), 1):
        y = GAP + line * TALL
        pen.text((GAP, y + 5), f"layer {layer}", fill=INK, font=font)
        for head, value in enumerate(gains[layer][0].tolist()):
            x, share = GAP + 60 + head * WIDE, (value - 1) / max(most - 1, 1e-6)
            colour = tuple(round(p + share * (a - p)) for p, a in zip(PAPER, ACCENT, strict=True))
            pen.rectangle((x, y, x + WIDE - 3, y + TALL - 3), fill=colour, outline=INK)
            pen.text((x + 8, y + 5), f"{value:.2f}", fill=INK, font=font)
    return sheet


def draw_likeness(
    correction: SinkDiagnosis, run: Callable[[Correction], Any], shown: Image.Image, visual: Tensor
) -> Image.Image:
    """Draw in how many layers each cell is like the first token; visual: Bool[N] of the prompt."""
    heard: list[Any] = []

    def listen(self: SinkDiagnosis, valid: Tensor) -> Any:
        heard.append(type(correction).listen(self, valid))
        return heard[-1]

    maps = run(told(correction, listen=listen))
    lives = heard[0].trace.lives()
    label = f"layers in which a cell is like the first token: {int(lives.primary[0][visual].sum())} primary sinks"
    return cell_map([shown], maps, [lives.lifetime[0][visual].float()], label=label)


def main(names: list[str]) -> None:
    model, processor = vlmopt.load_checkpoint("tiny-llava")
    for name in names or corrections(model, {}):
        save(draw(name, model, processor), OUT / "corrections" / f"{name}.png")


if __name__ == "__main__":
    main(sys.argv[1:])

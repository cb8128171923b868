"""Ask, look where the question points, and ask again about that part of the image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from vlmopt.core import hinting, near, shown

from ..api import optimized, report
from ..choices import ANSWERS, REFINE
from ..policy import Policy
from ..prompt import image_prompt, placed_for
from ..runtime.session import session_of
from .areas import Box, Heat
from .focus import GENERAL, Focus, focus
from .hearing import generated, length_of
from .looks import Score
from .memory import GeneralMaps
from .refine import cropped, masked, pixel_limit

# Trained on several images a prompt, by their model cards; any other model sees the second image alone.
SEVERAL = (
    "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe", "llava_onevision", "internvl",
    "idefics3", "smolvlm", "gemma3", "gemma4", "mistral3",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class SecondLook:
    """Both answers, and the part of the image between them. `str()` is a table, `to_dict()` is JSON-ready."""

    answer: str  # about `image` (and the first image before it, with answer="both"), under the policy
    first_answer: str  # about the whole image, by the unpruned model: its attention is what was looked at
    image: Image.Image  # the second image; the first one itself where `fallback` is set
    refine: str
    focus: Focus
    costs: dict[str, dict[str, int]] = field(default_factory=dict)  # tokens of "question", "general" and "second"

    @property
    def box(self) -> Box:
        """Left, top, right and bottom of the part in pixels of the image; right and bottom are exclusive."""
        return self.focus.box

    @property
    def map(self) -> Heat:
        """fp32 [h, w] over the image: how much more the question looks there than the general instruction."""
        return self.focus.heat

    @property
    def steps(self) -> int:
        """Answer tokens whose attention made the map."""
        return self.focus.steps

    @property
    def fallback(self) -> str | None:
        """Why the second look was at the whole image; None where it was at a part."""
        return self.focus.fallback

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers and strings; images and maps are left out."""
        return {
            "answer": self.answer,
            "first_answer": self.first_answer,
            "box": list(self.box),
            "size": list(self.focus.pixels.shape[::-1]),
            "share": self.focus.share,
            "refine": self.refine,
            "fallback": self.fallback,
            "steps": self.steps,
            "sinks": self.focus.sinks,
            "general_remembered": self.focus.remembered,
            "tokens": {name: dict(cost) for name, cost in self.costs.items()},
        }

    def __str__(self) -> str:
        left, top, right, bottom = self.box
        lines = [
            f"first answer  {self.first_answer!r}",
            f"looked at     {right - left} x {bottom - top} pixels from ({left}, {top}), "
            f"{100 * self.focus.share:.0f} % of the image kept, by {self.steps} answer token{'s' * (self.steps != 1)}",
        ]
        if self.fallback is not None:
            lines[1] = f"looked at     the whole image: {self.fallback}"
        lines.append(f"answer        {self.answer!r}" + (" (same)" if self.answer == self.first_answer else ""))
        if self.focus.sinks:
            lines.append(f"sinks         {self.focus.sinks} visual tokens were left out as attention sinks")
        return "\n".join([*lines, self.budget()])

    def budget(self) -> str:
        """Return one sentence on the tokens that both looks took."""
        second = self.costs["second"]
        total = sum(cost["visual"] for cost in self.costs.values())
        usual = (
            "none for the general instruction, which was remembered"
            if self.focus.remembered
            else f"{self.costs['general']['visual']} for the general instruction"
        )
        again = f"{second['visual']} for the second answer" if second["prompt"] else "none for a second answer"
        return (
            f"tokens        {total} visual ones enter the model, where one answer takes "
            f"{self.costs['question']['visual']}: {self.costs['question']['visual']} for the first answer, {usual}, "
            f"{again}" + (f", of which {second['kept']} stay" if second["kept"] < second["visual"] else "")
        )


@hinting
def second_look(
    model: nn.Module,
    processor: Any,
    image: Image.Image,
    question: str,
    *,
    look: str | Score = "contrast",
    refine: str = "crop",
    answer: str = "refined",
    policy: Any = None,
    general: str = GENERAL,
    layers: str | None = None,
    steps: int | None = None,
    share: float = 0.3,
    most: int = 3,
    sinks: str = "leave_out",
    max_new_tokens: int = 64,
    memory: GeneralMaps | None = None,
) -> SecondLook:
    """Ask about an image, find the part that the question looks at, and ask again about that (CARVE, arXiv 2509.06461).

    Maps are collected from the unpruned model, in one batch for the question and the general instruction; the second
    answer is given under `policy`. Both answers are greedy.

    Args:
        model: a loaded vision-language model; it is given back as it came. image: RGB.
        look, general, layers, steps, share, most, sinks, memory: where to look, as for `vlmopt.looking.focus.focus`.
        refine: "mask": the part stays where it is, black around it; "crop": its box is cut out as well, and enlarged to
            the size of the image, at most to the pixels that the processor allows.
        answer: "refined": the second image alone is asked about; "both": the first one and it, for models that were
            trained on several images.
        policy: of the second answer, anything `Policy.load` takes; None: the one that is installed, if any.
        max_new_tokens: of each answer.

    Raises:
        ValueError, TypeError: a setting out of range, or what this model cannot do. Nothing has been changed then.
    """
    for name, value, allowed in (("refine", refine, REFINE), ("answer", answer, ANSWERS)):
        if value not in allowed:
            raise ValueError(f"{name} must be {' or '.join(allowed)}, got {shown(value)}{near(str(value), allowed)}")
    kind = getattr(model.config, "model_type", None)
    if answer == "both" and kind not in SEVERAL:
        raise ValueError(
            f"answer='both' shows two images, on which model_type={kind!r} was not trained; take answer='refined' "
            f"(trained on several: {', '.join(SEVERAL)})"
        )
    chosen = policy_for(model, policy)
    with optimized(model, chosen):
        pass  # a policy that cannot work on this model is refused here
    found = focus(
        model, processor, image, question,
        look=look, general=general, layers=layers, steps=steps, share=share, most=most, sinks=sinks,
        max_new_tokens=max_new_tokens, memory=memory,
    )  # fmt: skip
    refined = image
    if found.fallback is None and refine == "crop":
        refined = cropped(image, found.pixels, found.box, pixel_limit(processor, image))
    elif found.fallback is None:
        refined = masked(image, found.pixels)
    costs = {
        "question": cost(found.question.prompt_tokens, found.question.visual_tokens, found.question.tokens),
        "general": cost(found.general.prompt_tokens, found.general.visual_tokens, found.general.tokens),
        "second": cost(0, 0, 0),
    }
    if found.remembered:
        costs["general"] = cost(0, 0, 0)
    text = found.question.answer
    if refined is not image or chosen.changes:  # else it is the first answer once more
        images = [image, refined] if answer == "both" and refined is not image else [refined]
        text, costs["second"] = ask(model, processor, images, question, chosen, max_new_tokens)
    return SecondLook(text, found.question.answer, refined, refine, found, costs)


def policy_for(model: nn.Module, policy: Any) -> Policy:
    """Return the policy of the second answer: the given one, else the one that is installed, else none."""
    if policy is not None:
        return Policy.load(policy)
    session = session_of(model)
    return Policy() if session is None else session.policy


@torch.inference_mode()
def ask(
    model: Any, processor: Any, images: Sequence[Image.Image], question: str, policy: Policy, most: int
) -> tuple[str, dict[str, int]]:
    """Return the greedy answer about images under a policy, and its tokens."""
    inputs = placed_for(model, image_prompt(processor, question, images))
    with optimized(model, policy):
        ids = generated(model, processor, inputs, [most])
        sample = report(model).samples[0]
    new: Tensor = ids[0, inputs["input_ids"].shape[1] :].cpu()
    count = min(length_of(new, model), most)
    text = str(processor.tokenizer.decode(new[:count], skip_special_tokens=True)).strip()
    return text, cost(sample["prompt_tokens"], sample["visual_tokens"], count, sample["visual_tokens_kept"])


def cost(prompt: int, visual: int, new: int, kept: int | None = None) -> dict[str, int]:
    """Return tokens by what they are: of the prompt, visual ones among them, those that stay, and new ones."""
    return {"prompt": int(prompt), "visual": visual, "kept": visual if kept is None else kept, "new": new}

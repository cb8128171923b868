r"""Which corrections and contrasts make a model hallucinate less, and is the text still text? POPE and CHAIR.

Every image is a scene in which objects keep company (`vlmopt.synthetic.hallucination`): in training an object's
partner came along with probability 0.85, here with 0.5. A quarter of the images is clean, the others are blurred,
low in contrast or made of small shapes. POPE asks six questions per image and split; captions answer "Describe the
image." and are marked with exact ground truth. CHAIR alone proves nothing: a caption that stops early or repeats
what is safe scores well, so recall, length, distinct-n, repeated items and captions cut off stand beside it.
Differences are paired with greedy decoding on the same images (bootstrap over images, 95 %). One interval in twenty
leaves out zero where there is nothing: what stands out in one block of seeds is asked again in others, and believed for
what these say. Figures are those of the bundled checkpoints and say nothing about real models.

Contrasts buy answers of yes: beside each stands a constant on the logits of yes, fitted so that as many answers are yes
("yes as VCD"), from how far those of greedy decoding were from yes. Captions stay those of greedy decoding.

    python benchmarks/hallucination.py --checkpoint tiny-llava
    python benchmarks/hallucination.py --checkpoint tiny-qwen --methods greedy PAI VHR
    python benchmarks/hallucination.py --checkpoint tiny-llava --methods "PAINT 0.5" --block 1 2
    python benchmarks/hallucination.py --checkpoint tiny-qwen --decoding --block 3 --polled 512 --splits adversarial
    python benchmarks/hallucination.py --tables          # Markdown of what was measured; --block chooses here, too
"""

from __future__ import annotations

import argparse
import hashlib
import json
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import vlmopt
from common import append
from hallucination_look import LOCAL, SECOND_LOOK, Local, Masked, as_it_is
from hallucination_tables import show
from hallucination_task import GROUPS, LETTERS, Task, cells, seed_of, task
from vlmopt.checkpoints import HERE
from vlmopt.decoding import yes_ids
from vlmopt.metrics import Lexicon, chair, is_yes, phrases, text_state
from vlmopt.metrics.chair import COUNTS
from vlmopt.policy import Policy
from vlmopt.prompt import chat
from vlmopt.synthetic.hallucination import DEGRADATIONS, DESCRIBE, classes
from vlmopt.synthetic.polling import ROUNDS, SPLITS

BATCH = 64
ANSWER, CAPTION = 4, 64  # new tokens


# By the name that papers give them, as published or in our default unless the name says otherwise.
CORRECTIONS: dict[str, dict[str, Any]] = {
    "VAR": {"method": "visual_sink"},
    "PAINT 0.5": {"method": "informed_tokens"},
    "PAINT 0.7": {"method": "informed_tokens", "alpha": 0.7, "beta": 0.4},
    "PAI": {"method": "image_boost"},
    "PAI + guidance": {"method": "image_boost", "gamma": 1.1},
    "VAF": {"method": "attention_fusion", "sign_safe": True},
    "VAF as published": {"method": "attention_fusion", "sign_safe": False},
    "HGAI": {"method": "head_guided"},
    "VHR": {"method": "vision_heads"},
    "VHR 2": {"method": "vision_heads", "strength": 2.0},
    "head gain": {"method": "head_gain"},
    "IAT": {"method": "generated_text"},
    "AdaIAT": {"method": "adaptive_generated_text"},
}
# Contrasts and what stands beside them, greedy like all else.
DECODINGS: dict[str, dict[str, Any]] = {
    "VCD": {"method": "vcd"},
    "VCD, t 999": {"method": "vcd", "t": 999},
    "blank image": {"method": "blank_contrast"},
    "text alone": {"method": "text_contrast"},
    "plausibility": {"method": "plausibility"},
    "DeCo": {"method": "deco"},
    "DoLa": {"method": "dola"},
}
MEASURED = ("visual_sink", "head_gain", "adaptive_generated_text")  # nothing without a profile of the model


def policies(settings: dict[str, dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Return policies by name; `settings`, by method name, are added. A method without its profile is left out."""
    ready = {n: c for n, c in CORRECTIONS.items() if c["method"] not in MEASURED or c["method"] in settings}
    return {"greedy": [], SECOND_LOOK: [], **{n: [{**c, **settings.get(c["method"], {})}] for n, c in ready.items()}}


@dataclass(frozen=True)
class Said:
    """An answer: its text, whether it came to its end, and how far the logits of yes were below the best other."""

    text: str
    ended: bool
    short_of_yes: float


@torch.inference_mode()
def answers(
    model: Any, processor: Any, job: Task, bar: tqdm, seen: Any = as_it_is, batch: int = BATCH
) -> dict[tuple[int, str], Said]:
    """Return what is said of every (image, question), greedy, about `seen(image, question)`."""
    found, yes = {}, torch.tensor(yes_ids(processor.tokenizer))
    for describing, group in groupby(job.asked, key=lambda pair: pair[1] == DESCRIBE):
        pairs = list(group)
        for start in range(0, len(pairs), batch):
            part = pairs[start : start + batch]
            text = [chat(processor, "image", 1, question) for _, question in part]
            images = [[seen(job.worlds[image].image, question)] for image, question in part]
            inputs = processor(text=text, images=images, return_tensors="pt", padding=True)
            out = model.generate(
                **inputs,
                max_new_tokens=CAPTION if describing else ANSWER,
                do_sample=False,
                output_scores=True,
                return_dict_in_generate=True,
            )
            new, first = out.sequences[:, inputs["input_ids"].shape[1] :], out.scores[0]
            ended = (new == processor.tokenizer.eos_token_id).any(1).tolist()
            texts = processor.tokenizer.batch_decode(new, skip_special_tokens=True)
            short = first.index_fill(1, yes, -torch.inf).amax(1) - first[:, yes].amax(1)
            rows = zip((text.strip() for text in texts), ended, short.tolist(), strict=True)
            found |= {pair: Said(*row) for pair, row in zip(part, rows, strict=True)}
            bar.update(len(part))
    return found


def marked(job: Task, found: dict[tuple[int, str], Said], lexicon: Lexicon) -> dict[str, Any]:
    """Return what is kept of one method: marks per question and image, from which the tables are computed."""
    described = [found[image, DESCRIBE] for image in range(len(job.worlds))]
    captions, ended = [said.text for said in described], [said.ended for said in described]
    marks = chair(captions, [world.classes for world in job.worlds], lexicon)
    groups = {group: [i for i, w in enumerate(job.worlds) if w.degradation in kinds] for group, kinds in GROUPS.items()}
    return {
        "lexicon": marks.source,
        "said": {
            split: "".join(LETTERS[is_yes(found[p.image, p.text].text, "strict")] for p in polls)
            for split, polls in job.polls.items()
        },
        "chair": {name: getattr(marks, name).tolist() for name in COUNTS},
        "text": {
            group: asdict(text_state([captions[i] for i in chosen], stops=",", ended=[ended[i] for i in chosen]))
            for group, chosen in groups.items()
        },
        "examples": captions[: 2 * len(DEGRADATIONS)],
    }


def margins(job: Task, found: dict[tuple[int, str], Said]) -> dict[str, Any]:
    """Return by how much the logits of yes fell short of the best other, per question."""
    return {
        "margins": {
            split: [round(found[p.image, p.text].short_of_yes, 3) for p in polls] for split, polls in job.polls.items()
        }
    }


def run(options: argparse.Namespace) -> None:
    model, processor = vlmopt.load_checkpoint(options.checkpoint)
    named = policies(json.loads(options.settings.read_text()) if options.settings else {})
    ready = [*named, *DECODINGS, LOCAL]
    unknown = set(options.methods or ()) - {*ready}
    if unknown:
        raise SystemExit(f"{sorted(unknown)}: unknown, or without a profile in --settings; ready: {', '.join(ready)}")
    wanted = options.methods or ([*DECODINGS, SECOND_LOOK, LOCAL] if options.decoding else named)
    looks = {SECOND_LOOK: Masked, LOCAL: Local}
    names = ["greedy", *(name for name in wanted if name != "greedy")]
    lexicon = phrases(classes(), "classes of the images")
    weights = hashlib.sha256((HERE / options.checkpoint / "model.safetensors").read_bytes()).hexdigest()[:16]
    for block in options.block:
        asked = options.splits, options.rounds
        job = task(options.images, options.polled, model.config.model_type, seed_of(block), *asked)
        for name in names:
            same = {"checkpoint": options.checkpoint, "weights": weights, "task": job.facts}
            seen = looks[name](model, processor) if name in looks else as_it_is
            policy = (
                seen.policy if name == LOCAL else Policy.load([DECODINGS[name]] if name in DECODINGS else named[name])
            )
            written = policy.to_dict()
            key = {**same, "method": name, "attention": written["attention"], "decoding": written["decoding"]}
            if any(all(cell.get(field, []) == value for field, value in key.items()) for cell in cells()):
                print(f"{options.checkpoint} {name}, block {block}: measured before")
                continue
            title = f"{options.checkpoint} {name}, block {block}"
            with tqdm(total=len(job.asked), desc=title) as bar, vlmopt.optimized(model, policy):
                found = answers(model, processor, job, bar, seen, 1 if name == LOCAL else BATCH)
            append(
                "hallucination",
                {**key, **marked(job, found, lexicon), **(margins(job, found) if name == "greedy" else {})},
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="tiny-llava")
    parser.add_argument("--images", type=int, default=512, help="described; a quarter of them is clean")
    parser.add_argument("--polled", type=int, default=128, help="how many of them are asked POPE's questions too")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of POPE: a yes and a no about each image and split")
    parser.add_argument("--splits", nargs="+", choices=SPLITS, default=SPLITS, help="of POPE; all, unless named")
    parser.add_argument(
        "--block", type=int, nargs="+", default=[0], help="of seeds, each with its own images; --tables pools them"
    )
    known = ", ".join([*CORRECTIONS, *DECODINGS])
    parser.add_argument("--methods", nargs="+", help=f"of {known}; greedy always runs")
    parser.add_argument("--decoding", action="store_true", help="contrasts and their controls, not corrections")
    parser.add_argument(
        "--settings", type=Path, help="JSON: method -> settings to add, such as {'visual_sink': {'profile': {...}}}"
    )
    parser.add_argument("--tables", action="store_true", help="print Markdown of what was measured, and stop")
    options = parser.parse_args()
    if options.tables:
        show(options.block)
    else:
        run(options)


if __name__ == "__main__":
    main()

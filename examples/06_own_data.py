"""Two policies on data of your own: a manifest of JSON lines in, figures with intervals and plots out.

The manifest is written here, about generated images; with your own, start at `evaluate`. You see a figure per policy,
paired with the model as it is, and examples-out/run/report.html with plots (PNG in examples-out/run/plots).
"""

import json
from pathlib import Path

from vlmopt.evaluation.data import Source
from vlmopt.evaluation.evaluate import Settings, evaluate
from vlmopt.evaluation.report import write_report
from vlmopt.evaluation.summary import summarize
from vlmopt.synthetic import scene, screen

OUT = Path("examples-out")
IMAGES, QUESTIONS = 12, 3
POLICIES = ("balanced", "random:keep_ratio=0.25")

(OUT / "data").mkdir(parents=True, exist_ok=True)
with (OUT / "data" / "manifest.jsonl").open("w", encoding="utf-8") as manifest:
    for number in range(IMAGES):
        world = (scene, screen)[number % 2](number)
        world.image.save(OUT / "data" / f"{number}.png")
        for index, question in enumerate(world.questions[:QUESTIONS]):
            row = {"id": f"{number}-{index}", "image": f"{number}.png", "question": question.text}
            row |= {"answer": question.answer, "kind": question.kind, "box": question.box}
            manifest.write(json.dumps(row) + "\n")

source = Source(data=[str(OUT / "data" / "manifest.jsonl")], boxes="xyxy", run=OUT / "run")
run = evaluate(Settings(model="tiny-qwen", source=source, policies=POLICIES, device="cpu"))
summary = summarize(run)
for name, one in summary["policies"].items():
    accuracy = one["metrics"]["accuracy"]
    ends = f"{100 * accuracy['low']:.0f} to {100 * accuracy['high']:.0f} %"
    print(f"{name:<24} {one['tokens']['kept']:>6.1f} tokens, right {100 * accuracy['value']:.0f} % ({ends})")
print(f"report: {write_report(run)}")

"""Several questions about images of different sizes in one batch.

Every sample is pruned by itself: you see how many tokens each had and kept, and that its answer in the batch is the one
that it gets alone.
"""

import vlmopt
from vlmopt.prompt import chat
from vlmopt.synthetic import scene, screen

model, processor = vlmopt.load_checkpoint("tiny-qwen")
worlds = [scene(1, (224, 224)), screen(2, (280, 196)), scene(3, (196, 280))]  # images with questions about them
images = [world.image for world in worlds]
questions = [world.questions[0].text for world in worlds]


def ask(numbers: list[int]) -> list[str]:
    inputs = processor(
        text=[chat(processor, "image", 1, questions[number]) for number in numbers],
        images=[[images[number]] for number in numbers],
        padding=True,  # on the left, as generate() needs it
        return_tensors="pt",
    )
    ids = model.generate(**inputs, max_new_tokens=32, do_sample=False)
    texts = processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return [text.strip() for text in texts]


with vlmopt.optimized(model, "fastv:keep_ratio=0.4,layer=2"):
    together = ask([0, 1, 2])
    samples = vlmopt.report(model).samples
    alone = [ask([number])[0] for number in range(3)]

for question, answer, other, sample in zip(questions, together, alone, samples, strict=True):
    kept = f"{sample['visual_tokens_kept']} of {sample['visual_tokens']} tokens"
    print(f"{question}  {kept}\n    in the batch: {answer}\n    alone:        {other}")
